"""The ops of the model's forward and of its weights in plain torch, with the signatures of the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def merge_weights(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """See ``ladle.kernels.merge_weights.merge_weights``."""
    total = terms[0][1].float() * terms[0][0]
    for coefficient, tensor in terms[1:]:
        total.add_(tensor, alpha=coefficient)
    return out.copy_(total)


def gated_lora(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gated_lora.gated_lora``; the products are made in the weights' dtype."""
    return expand_gated(out, x @ shrink.T, scale, expand)


def expand_gated(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gated_lora.expand_gated``."""
    return out.add_((shrunk * scale).to(expand.dtype) @ expand.T)
