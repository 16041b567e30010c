"""The ops of the model's forward and of its weights in plain torch, with the signatures of the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_weights(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """See ``ladle.kernels.gpu.merge_weights.merge_weights``; in float64 where anything is."""
    wide = torch.float64 in (out.dtype, *(tensor.dtype for _, tensor in terms))
    total = terms[0][1].to(torch.float64 if wide else torch.float32) * terms[0][0]
    for coefficient, tensor in terms[1:]:
        total.add_(tensor, alpha=coefficient)
    return out.copy_(total)


def gated_lora(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """See ``ladle.kernels.gpu.gated_lora.gated_lora``; the products are made in the weights' dtype."""
    return expand_gated(out, x @ shrink.T, scale, expand)


def expand_gated(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor, spans: Tensor | None = None) -> Tensor:
    """See ``ladle.kernels.gpu.gated_lora.expand_gated``."""
    return out.add_((shrunk * scale).to(expand.dtype) @ expand.T)


def add_vectors(x: Tensor, amounts: Tensor, vectors: Tensor) -> Tensor:
    """See ``ladle.kernels.gpu.add_vectors.add_vectors``; sums are made in the dtype of ``amounts``."""
    total = x.to(torch.promote_types(x.dtype, amounts.dtype), copy=True)
    for index in range(vectors.shape[0]):
        total += amounts[:, index, None] * vectors[index]
    return total.to(x.dtype)


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
    """See ``ladle.kernels.gpu.paged_attention.paged_attention``; also for float64."""
    lanes, heads, dim = query.shape
    kv_heads = pool.shape[2]
    token = torch.arange(table.shape[1] * page, device=pool.device)
    # [lanes, tokens]: the slot of every place of a lane's table, block * page + offset.
    slot_mapping = table.repeat_interleave(page, dim=1) * page + token % page
    seen = token <= positions[:, None]
    if window is not None:
        seen &= token > positions[:, None] - window
    # What is not seen is not multiplied by 0: its last owner may have left a NaN.
    pairs = pool[slot_mapping].masked_fill(~seen[:, :, None, None, None], 0)
    keys, values = pairs[:, :, 0].permute(0, 2, 3, 1), pairs[:, :, 1].transpose(1, 2)
    scores = query.view(lanes, kv_heads, heads // kv_heads, dim) @ keys * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.softmax(scores.masked_fill(~seen[:, None, None, :], -torch.inf), dim=-1)
    return (weights.to(query.dtype) @ values).reshape(lanes, heads, dim)
