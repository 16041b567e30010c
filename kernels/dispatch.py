"""The only door to the kernels: what other rooms import, whatever runs underneath."""

import functools

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
    "guidance_shift",
    "mix_experts",
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
