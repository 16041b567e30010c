"""The only door to the kernels: what other rooms import, whatever runs underneath.

On a GPU what has a Triton kernel runs through it, and on a CPU what has a compiled loop, unless LADLE_TORCH_KERNELS
names it: a comma-separated list of ops, or ``all``; then, and elsewhere, plain torch does the same.
LADLE_INTERPRETED_KERNELS names ops that go through their Triton kernels on a CPU, for tests: TRITON_INTERPRET=1 must
stand before Triton is imported.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ladle.kernels.cpu.arrays import Floats, LayerPass, Layers, PagedTokens, Product
from ladle.kernels.cpu.packed_linear import PackedLinear, cpu_has_bfloat16
from ladle.kernels.entropy import entropy
from ladle.kernels.reference import model as model_reference
from ladle.kernels.reference import operations as reference
from ladle.kernels.reference import route_tokens as routing
from ladle.kernels.reference import step as step_reference
from ladle.kernels.reference.operations import guidance_shift
from ladle.kernels.spans import Block, spans_of
from ladle.kernels.step_tables import RoutedRows, SampledTokens, StepTables

__all__ = [
    "ALL_ROWS",
    "Block",
    "LayerPass",
    "PagedTokens",
    "Layers",
    "PackedLinear",
    "Product",
    "add_candidate_values",
    "add_vectors",
    "apply_penalties",
    "best_logprobs",
    "can_compile",
    "combine_divergence",
    "combine_logits",
    "combine_routed",
    "cpu_has_bfloat16",
    "entropy",
    "expand_gated",
    "fused_step",
    "fuses",
    "gated_lora",
    "guidance_shift",
    "guided_scores",
    "merge_weights",
    "mix_experts",
    "on_gpu",
    "paged_attention",
    "prepare_draws",
    "route_rows",
    "route_tokens",
    "routes",
    "rule_out_implausible",
    "run_layers",
    "sample",
    "seconds",
    "spans_of",
    "stack_products",
    "tiled_product",
    "tiled_rows",
    "tiling_obstacle",
    "token_logprobs",
    "weighted_sum",
]

ALL_ROWS = sys.maxsize
LARGEST_HEAD = 256
"""Values a head up to which the kernel for decode attention takes it."""


@functools.cache
def can_compile() -> bool:
    """Whether ``run_layer``, ``weighted_sum`` and compiled draws are there: their compiler is not on every platform."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def prepare_draws(device: torch.device) -> None:
    """Compile what draws on ``device`` go through, before a request waits for it: seconds, once a machine."""
    scores = torch.zeros(1, 2, device=device)
    if _compiled("sample", scores):
        one, keys = torch.ones(1), torch.zeros(1, 2, dtype=torch.int32)
        token_logprobs(scores, sample(scores, one, one.long(), one, one, keys))


def run_layers(step: LayerPass) -> None:
    """See ``ladle.kernels.cpu.decoder_stack.run_layers``; compiled on first use, which takes some seconds."""
    from ladle.kernels.cpu import decoder_stack

    decoder_stack.run_layers(step)


def tiled_product(
    weight: Tensor,
    bias: Tensor | None,
    shrink: Tensor | None,
    expand: Tensor | None,
    dtype: torch.dtype,
    rows: int,
    exact: bool,
    quantized: bool = False,
    rounded: bool = False,
) -> Any:
    """A ``ladle.kernels.cpu.tiled_product.TiledProduct``, or None where ``rows`` is 0 or there can be none.

    ``exact``: the weights' values have to be kept as they are, so that none can be held in 16 bits; ``quantized``: in 8
    bits; ``rounded``: expand factors may be held in bfloat16 beside those."""
    if exact or not rows or tiling_obstacle(weight, shrink, expand, dtype, quantized) is not None:
        return None
    from ladle.kernels.cpu import tiled_product as cpu

    return cpu.TiledProduct(weight, bias, shrink, expand, dtype, quantized, rounded)


def tiling_obstacle(
    weight: Tensor, shrink: Tensor | None, expand: Tensor | None, dtype: torch.dtype, quantized: bool
) -> str | None:
    """Why these weights and factors can be no ``TiledProduct``; None where they can."""
    if not can_compile():
        return "there is no compiler for the processor on this machine (numba)"
    from ladle.kernels.cpu import tiled_product as cpu

    parts = [("the layer", weight, dtype, quantized), ("its shrink factors", shrink, dtype, False)]
    parts.append(("its expand factors", expand, torch.float32, False))  # held in float16, whatever the activations
    for name, part, kind, small in parts:
        reason = None if part is None else cpu.obstacle(part, kind, small)
        if reason is not None:
            return f"{name}: {reason}"
    return None


def tiled_rows(dtype: torch.dtype, elements: int) -> int:
    """Up to how many rows a tiled product is the quickest here, of a model with so many weights; 0: never."""
    if not can_compile():
        return 0
    from ladle.kernels.cpu import row_limit

    return row_limit.tiled_rows(dtype, elements)


def seconds(work: Callable[[], object], rounds: int) -> float:
    """How long the quickest of ``rounds`` calls of ``work`` takes."""
    from ladle.kernels.cpu import row_limit

    return row_limit.seconds(work, rounds)


def stack_products(products: Sequence[Any]) -> Product:
    """See ``ladle.kernels.cpu.tiled_product.stack``."""
    from ladle.kernels.cpu import tiled_product as cpu

    return cpu.stack(products)


def weighted_sum(out: Floats, terms: list[tuple[float, Floats]]) -> None:
    """See ``ladle.kernels.cpu.weighted_sum.weighted_sum``."""
    from ladle.kernels.cpu import weighted_sum

    weighted_sum.weighted_sum(out, terms)


def on_gpu(tensor: Tensor) -> bool:
    """Whether ops on ``tensor`` run on a GPU, NVIDIA's or AMD's."""
    return tensor.is_cuda


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def _through_triton(op: str, *tensors: Tensor) -> bool:
    """Whether ``op`` on ``tensors`` goes through its Triton kernel; float64 never does."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return False
    if not on_gpu(tensors[0]):
        return os.environ.get("TRITON_INTERPRET") == "1" and _named(op, "LADLE_INTERPRETED_KERNELS")
    return _has_triton() and not _named(op, "LADLE_TORCH_KERNELS")


def _compiled(op: str, tensor: Tensor) -> bool:
    """Whether ``op`` on ``tensor`` goes through a loop compiled for the processor: float32 on a CPU."""
    plain = tensor.device.type != "cpu" or tensor.dtype != torch.float32 or _through_triton(op, tensor)
    return not plain and can_compile() and not _named(op, "LADLE_TORCH_KERNELS")


def _named(op: str, variable: str) -> bool:
    named = os.environ.get(variable, "").split(",")
    return op in named or "all" in named


def _module(op: str, otherwise: ModuleType, *tensors: Tensor) -> Any:
    """The module that has ``op`` for ``tensors``: of its Triton kernels, or of plain torch."""
    return importlib.import_module(f"ladle.kernels.gpu.{op}") if _through_triton(op, *tensors) else otherwise


def combine_logits(logits: Tensor, source_rows: Tensor, weights: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.operations.combine_logits``."""
    scores: Tensor = _module("combine_logits", reference, logits).combine_logits(logits, source_rows, weights)
    return scores


def combine_divergence(logits: Tensor, source_rows: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.operations.combine_divergence``."""
    module = _module("combine_logits", reference, logits)
    scores: Tensor = module.combine_divergence(logits, source_rows, weights, alpha)
    return scores


def rule_out_implausible(scores: Tensor, base: Tensor, top_k: Tensor, top_p: Tensor, relative: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.operations.rule_out_implausible``."""
    module = _module("combine_logits", reference, scores, base)
    result: Tensor = module.rule_out_implausible(scores, base, top_k, top_p, relative)
    return result


def add_candidate_values(
    scores: Tensor, candidates: Tensor, values: Tensor, centred: Tensor, restricted: Tensor
) -> Tensor:
    """See ``ladle.kernels.reference.operations.add_candidate_values``."""
    module = _module("combine_logits", reference, scores)
    result: Tensor = module.add_candidate_values(scores, candidates, values, centred, restricted)
    return result


def apply_penalties(
    scores: Tensor, counts: Tensor, seen: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """See ``ladle.kernels.reference.operations.apply_penalties``."""
    module = _module("combine_logits", reference, scores)
    result: Tensor = module.apply_penalties(scores, counts, seen, repetition, presence, frequency)
    return result


def sample(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.operations.sample``."""
    if _compiled("sample", scores):
        from ladle.kernels.cpu import sample as cpu_sample

        options = (each.contiguous().numpy() for each in (scores, temperature, top_k, top_p, min_p, keys))
        return torch.from_numpy(cpu_sample.sample_rows(*options))
    tokens: Tensor = _module("sample", reference, scores).sample(scores, temperature, top_k, top_p, min_p, keys)
    return tokens


def token_logprobs(scores: Tensor, tokens: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.operations.token_logprobs``."""
    if _compiled("sample", scores):
        from ladle.kernels.cpu import sample as cpu_sample

        return torch.from_numpy(cpu_sample.logprobs_of(scores.contiguous().numpy(), tokens.contiguous().numpy()))
    logprobs: Tensor = _module("sample", reference, scores).token_logprobs(scores, tokens)
    return logprobs


def best_logprobs(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See ``ladle.kernels.reference.operations.best_logprobs``."""
    best: tuple[Tensor, Tensor] = _module("sample", reference, scores).best_logprobs(scores, count)
    return best


def route_tokens(scores: Tensor, previous: Tensor, stayed: Tensor, stay: Tensor) -> Tensor:
    """See ``ladle.kernels.reference.route_tokens.route_tokens``."""
    experts: Tensor = _module("route_tokens", routing, scores).route_tokens(scores, previous, stayed, stay)
    return experts


def mix_experts(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """See ``ladle.kernels.reference.route_tokens.mix_experts``."""
    mixture: tuple[Tensor, Tensor] = _module("route_tokens", routing, scores).mix_experts(scores, top)
    return mixture


def combine_routed(
    router_logits: Tensor, expert_logits: Tensor, mixture: Tensor, complement: Tensor, weight: Tensor, normalize: Tensor
) -> Tensor:
    """See ``ladle.kernels.reference.route_tokens.combine_routed``."""
    module = _module("route_tokens", routing, router_logits, expert_logits)
    combined: Tensor = module.combine_routed(router_logits, expert_logits, mixture, complement, weight, normalize)
    return combined


def routes(scores: Tensor) -> bool:
    """Whether ``route_rows`` on ``scores`` asks nothing of the host."""
    return _through_triton("route_tokens", scores)


def route_rows(scores: Tensor, *rest: Any, **named: Any) -> RoutedRows:
    """See ``ladle.kernels.reference.step.route_rows``."""
    routed_rows: RoutedRows = _module("route_tokens", step_reference, scores).route_rows(scores, *rest, **named)
    return routed_rows


_OPERATIONS = step_reference.Operations(
    combine_logits,
    combine_divergence,
    combine_routed,
    add_candidate_values,
    rule_out_implausible,
    apply_penalties,
    sample,
    token_logprobs,
    best_logprobs,
)


def fuses(logits: Tensor) -> bool:
    """Whether ``fused_step`` on ``logits`` is one launch after another without the host, and so can be recorded."""
    return _through_triton("fused_step", logits)


def fused_step(logits: Tensor, tables: StepTables) -> SampledTokens:
    """See ``ladle.kernels.reference.step.fused_step``; in Triton all operations share a few passes."""
    if not _through_triton("fused_step", logits):
        return step_reference.fused_step(logits, tables, _OPERATIONS)
    from ladle.kernels.gpu import fused_step

    return fused_step.fused_step(logits, tables)


def guided_scores(logits: Tensor, tables: StepTables) -> Tensor:
    """See ``ladle.kernels.reference.step.guided_scores``."""
    if not _through_triton("fused_step", logits):
        return step_reference.guided_scores(logits, tables, _OPERATIONS)
    from ladle.kernels.gpu import fused_step

    return fused_step.guided_scores(logits, tables)


def expand_gated(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor, spans: Tensor | None = None) -> Tensor:
    """See ``ladle.kernels.gpu.gated_lora.expand_gated``."""
    if not _through_triton("gated_lora", out):
        return model_reference.expand_gated(out, shrunk, scale, expand, spans)
    from ladle.kernels.gpu import gated_lora

    return gated_lora.expand_gated(out, shrunk, scale, expand, spans)


def gated_lora(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gpu.gated_lora.gated_lora``."""
    if not _through_triton("gated_lora", out):
        return model_reference.gated_lora(out, x, shrink, scale, expand)
    from ladle.kernels.gpu import gated_lora

    return gated_lora.gated_lora(out, x, shrink, scale, expand)


def add_vectors(x: Tensor, amounts: Tensor, vectors: Tensor) -> Tensor:
    """See ``ladle.kernels.gpu.add_vectors.add_vectors``."""
    sums: Tensor = _module("add_vectors", model_reference, x, amounts).add_vectors(x, amounts, vectors)
    return sums


def merge_weights(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """See ``ladle.kernels.gpu.merge_weights.merge_weights``."""
    if not _through_triton("merge_weights", out, *(tensor for _, tensor in terms)):
        return model_reference.merge_weights(out, terms)
    from ladle.kernels.gpu import merge_weights

    return merge_weights.merge_weights(out, terms)


def paged_attention(
    query: Tensor,
    pool: Tensor,
    table: Tensor,
    positions: Tensor,
    page: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """See ``ladle.kernels.gpu.paged_attention.paged_attention``; plain torch takes larger heads as well."""
    if query.shape[2] > LARGEST_HEAD or not _through_triton("paged_attention", query):
        return model_reference.paged_attention(query, pool, table, positions, page, scaling, window, softcap)
    from ladle.kernels.gpu import paged_attention

    return paged_attention.paged_attention(query, pool, table, positions, page, scaling, window, softcap)
