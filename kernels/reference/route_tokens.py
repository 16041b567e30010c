"""Routing in plain torch: which expert speaks at a token, and what is made of its scores and the router's.

Rows are sequences; nothing in a row depends on the others, so a token does not depend on what shares its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def route_tokens(scores: Tensor, previous: Tensor, stayed: Tensor, stay: Tensor) -> Tensor:
    """The expert of the next token: the one with the greatest score (FusionRoute, arXiv 2601.05106), the first of equal
    ones; but one that was switched to is kept for at least ``stay`` tokens (our own option).

    ``scores`` [rows, experts] any float dtype, ``previous`` [rows] int64 the expert of the last token (-1: none),
    ``stayed`` [rows] int64 how many tokens in a row it has spoken, ``stay`` [rows] int64 >= 1. Returns [rows] int64.
    """
    best = scores.argmax(dim=-1)
    return torch.where((previous >= 0) & (stayed < stay), previous, best)


def mix_experts(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The ``top`` experts with the greatest scores and their shares, the softmax of those scores (our own option).

    ``scores`` [rows, experts], 1 <= ``top`` <= experts. Returns the experts [rows, top] int64, the greatest first, the
    lower index first among equal ones, and the shares [rows, top] float32 (float64 for float64 scores); the share of a
    single expert is exactly 1.
    """
    # Sorted, because topk promises nothing about the order of equal scores.
    ordered, experts = scores.sort(dim=-1, descending=True, stable=True)
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return experts[:, :top], torch.softmax(ordered[:, :top].to(dtype), dim=-1)


def combine_routed(
    router_logits: Tensor, expert_logits: Tensor, mixture: Tensor, complement: Tensor, weight: Tensor, normalize: Tensor
) -> Tensor:
    """S = complement * lp_router + weight * lp_expert, lp = log_softmax (FusionRoute, arXiv 2601.05106: both are 1).

    ``router_logits`` [rows, vocabulary], ``expert_logits`` [rows, m, vocabulary] any float dtype, ``mixture`` [rows, m]
    shares >= 0 of the chosen experts, their sum 1, ``complement`` and ``weight`` [rows] >= 0, not both 0,
    ``normalize`` [rows] bool. Returns float32 (float64 for float64 logits), [rows, vocabulary].

    Of several experts the probabilities are mixed: lp_expert = log sum_i mixture_i p_i (our own option). Where
    ``normalize`` says so, the coefficients are divided by their sum, which undoes the sharpening of a sum other than 1
    (our own option). What has no share or no weight is left out, not multiplied, whatever it holds: complement 0 gives
    weight * lp_expert, and weight 1 besides the expert's log-softmax bit for bit.
    """
    dtype = torch.promote_types(router_logits.dtype, torch.float32)
    factors = torch.stack([complement.double(), weight.double()], dim=1)
    # Divided here and not afterwards, so that a coefficient that is all of the sum becomes exactly 1.
    factors = torch.where(normalize[:, None], factors / factors.sum(dim=1, keepdim=True), factors)
    spoken = _mixed_logprobs(expert_logits, mixture, dtype)
    scores = _scaled(spoken, factors[:, 1])
    routed = (factors[:, 0] != 0).nonzero()[:, 0]
    if routed.numel():
        own = torch.log_softmax(router_logits.index_select(0, routed).to(dtype), dim=-1)
        scores[routed] = _scaled(own, factors[routed, 0]) + scores[routed]
    return scores


def _mixed_logprobs(logits: Tensor, mixture: Tensor, dtype: torch.dtype) -> Tensor:
    """log sum_i mixture_i p_i of ``logits`` [rows, m, vocabulary]: a fresh tensor [rows, vocabulary]."""
    alone = (mixture != 0).sum(dim=-1) == 1
    # Rows with one expert are one batched log-softmax; the mixtures among them are then written over.
    leading = mixture.argmax(dim=-1)
    rows = torch.arange(len(logits), device=logits.device)
    logprobs = torch.log_softmax(logits[rows, leading].to(dtype), dim=-1)
    # Row by row: vectorised logarithms differ in the last bit between the body and the tail of a tensor, and where a
    # row's tail lies must not depend on how many others are computed with it.
    for row in (~alone).nonzero()[:, 0].tolist():
        taking_part = mixture[row] != 0
        parts = torch.log_softmax(logits[row, taking_part].to(dtype), dim=-1)
        logprobs[row] = torch.logsumexp(parts + mixture[row, taking_part].to(dtype).log()[:, None], dim=0)
    return logprobs


def _scaled(logprobs: Tensor, factor: Tensor) -> Tensor:
    """factor[i] * logprobs[i], in place; zero where the factor is."""
    if not bool((factor == 1).all()):
        logprobs *= factor[:, None].to(logprobs.dtype)
        logprobs.masked_fill_((factor == 0)[:, None], 0)
    return logprobs
