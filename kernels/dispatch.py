"""The only door to the kernels: what other rooms import, whatever runs underneath.

On a GPU what has a Triton kernel runs through it, unless LADLE_TORCH_KERNELS names it: a comma-separated list of ops,
or ``all``; then, and elsewhere, plain torch does the same.
"""

import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ladle.kernels import model_reference
from ladle.kernels.layer import Floats, Layer, LayerRows, Product
from ladle.kernels.packed_linear import PackedLinear, cpu_has_bfloat16
from ladle.kernels.reference import (
    add_candidate_values,
    apply_penalties,
    combine_divergence,
    combine_logits,
    guidance_shift,
    rule_out_implausible,
    sample,
    token_logprobs,
)
from ladle.kernels.routing import combine_routed, mix_experts, route_tokens

__all__ = [
    "Layer",
    "LayerRows",
    "PackedLinear",
    "Product",
    "add_candidate_values",
    "apply_penalties",
    "can_compile",
    "combine_divergence",
    "combine_logits",
    "combine_routed",
    "cpu_has_bfloat16",
    "expand_gated",
    "gated_lora",
    "guidance_shift",
    "merge_weights",
    "mix_experts",
    "on_gpu",
    "paged_attention",
    "route_tokens",
    "rule_out_implausible",
    "run_layer",
    "sample",
    "token_logprobs",
    "weighted_sum",
]


@functools.cache
def can_compile() -> bool:
    """Whether ``run_layer`` and ``weighted_sum`` are there: their compiler is not on every platform."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def run_layer(
    x: Floats,
    layer: Layer,
    scales: tuple[Floats, Floats, Floats, Floats],
    rows: LayerRows,
    kv: Floats,
    block: int,
    threads: int,
) -> None:
    """See ``ladle.kernels.cpu_layer.run_layer``; compiled on first use, which takes some seconds."""
    from ladle.kernels import cpu_layer

    cpu_layer.run_layer(x, layer, scales, rows, kv, block, threads)


def weighted_sum(out: Floats, terms: list[tuple[float, Floats]]) -> None:
    """See ``ladle.kernels.weighted_sum.weighted_sum``."""
    from ladle.kernels import weighted_sum

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
    if not on_gpu(tensors[0]) or any(tensor.dtype == torch.float64 for tensor in tensors):
        return False
    left_out = os.environ.get("LADLE_TORCH_KERNELS", "").split(",")
    return _has_triton() and op not in left_out and "all" not in left_out


def expand_gated(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gated_lora.expand_gated``."""
    if not _through_triton("gated_lora", out):
        return model_reference.expand_gated(out, shrunk, scale, expand)
    from ladle.kernels import gated_lora

    return gated_lora.expand_gated(out, shrunk, scale, expand)


def gated_lora(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gated_lora.gated_lora``."""
    if not _through_triton("gated_lora", out):
        return model_reference.gated_lora(out, x, shrink, scale, expand)
    from ladle.kernels import gated_lora

    return gated_lora.gated_lora(out, x, shrink, scale, expand)


def merge_weights(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """See ``ladle.kernels.merge_weights.merge_weights``."""
    if not _through_triton("merge_weights", out, *(tensor for _, tensor in terms)):
        return model_reference.merge_weights(out, terms)
    from ladle.kernels import merge_weights

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
    """See ``ladle.kernels.paged_attention.paged_attention``."""
    if not _through_triton("paged_attention", query):
        return model_reference.paged_attention(query, pool, table, positions, page, scaling, window, softcap)
    from ladle.kernels import paged_attention

    return paged_attention.paged_attention(query, pool, table, positions, page, scaling, window, softcap)
