"""The fused step in plain torch: the reference's functions one after the other, on tables of mixed plans."""

from __future__ import annotations

import torch
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.reference.routing import combine_routed, mix_experts, route_tokens
from ladle.kernels.reference.scores import (
    add_candidate_values,
    apply_penalties,
    best_logprobs,
    combine_divergence,
    combine_logits,
    rule_out_implausible,
    sample,
    token_logprobs,
    truncation_threshold,
)
from ladle.kernels.step_tables import RoutedRows, StepResult, StepTables


def fused_step(logits: Tensor, tables: StepTables) -> StepResult:
    """One step of n sequences, from ``logits`` [rows, vocabulary] of all their sources to tokens and logprobs: the
    functions of ``reference``, in the order said there, on what ``tables`` holds.
    """
    final = _combined(logits, tables)
    scores = _adjusted(final, tables)
    numbers, choices = tables.numbers, tables.choices
    temperature = numbers[:, step_tables.TEMPERATURE]
    cuts = (
        choices[:, step_tables.TOP_K].long(),
        numbers[:, step_tables.TOP_P],
        numbers[:, step_tables.MIN_P],
    )
    keys = choices[:, step_tables.KEY_0 : step_tables.KEY_1 + 1]
    tokens = sample(scores, temperature, *cuts, keys)
    drawn = temperature > 0
    scaled = scores / torch.where(drawn, temperature, 1.0)[:, None].to(scores.dtype)
    thresholds = torch.where(drawn, truncation_threshold(scaled, *cuts), -torch.inf)
    logprobs, best = best_logprobs(final, tables.wanted)
    beyond = torch.arange(best.shape[1], device=best.device) >= choices[:, step_tables.WANTED, None]
    return StepResult(
        tokens=tokens,
        logprobs=token_logprobs(final, tokens),
        thresholds=thresholds,
        other_tokens=best.masked_fill_(beyond, -1),
        other_logprobs=logprobs.masked_fill_(beyond, -torch.inf),
    )


def _combined(logits: Tensor, tables: StepTables) -> Tensor:
    """Rules, candidate values, masks."""
    scores = combine_logits(logits, tables.rows, tables.weights)
    scale = tables.numbers[:, step_tables.SCALE]
    rules = tables.choices[:, step_tables.RULE]
    other = (rules == step_tables.DIVERGENCE).nonzero()[:, 0]
    if other.numel():
        scores[other] = combine_divergence(logits, tables.rows[other], tables.weights[other], scale[other])
    other = (rules == step_tables.ROUTED).nonzero()[:, 0]
    if other.numel():
        rows, weights = tables.rows[other], tables.weights[other]
        never = torch.zeros(len(other), dtype=torch.bool, device=logits.device)
        scores[other] = combine_routed(
            logits[rows[:, 0]], logits[rows[:, 1:]], weights[:, 1:], weights[:, 0], scale[other], never
        )
    for index, count in enumerate(tables.choices[:, step_tables.CANDIDATES].tolist()):
        restricted = tables.choices[index : index + 1, step_tables.RESTRICTED] != 0
        if count or bool(restricted):
            tokens, values = tables.candidates[index, None, :count], tables.values[index, None, :count]
            add_candidate_values(scores[index : index + 1], tokens, values, restricted & False, restricted)
    masked = (tables.choices[:, step_tables.BASE] >= 0).nonzero()[:, 0]
    if masked.numel():
        choices, numbers = tables.choices[masked], tables.numbers[masked]
        base = logits[choices[:, step_tables.BASE].long()].to(scores.dtype)
        scores[masked] = rule_out_implausible(
            scores[masked],
            _allowed(base, choices, tables),
            choices[:, step_tables.MASK_TOP_K].long(),
            numbers[:, step_tables.MASK_TOP_P],
            numbers[:, step_tables.MASK_RELATIVE],
        )
    return _allowed(scores, tables.choices, tables)


def _allowed(scores: Tensor, choices: Tensor, tables: StepTables) -> Tensor:
    """``scores``, -inf in place where a row's ``choices`` do not allow a token."""
    limited = (choices[:, step_tables.ALLOWED] >= 0).nonzero()[:, 0]
    if limited.numel():
        held = choices[limited, step_tables.ALLOWED].long()
        scores[limited] = scores[limited].masked_fill(~tables.allowed[held], -torch.inf)
    return scores


def _adjusted(final: Tensor, tables: StepTables) -> Tensor:
    """A copy with penalties and logit bias."""
    scores = final.clone()
    counted = (tables.choices[:, step_tables.COUNTED] >= 0).nonzero()[:, 0]
    if counted.numel():
        held, numbers = tables.choices[counted, step_tables.COUNTED].long(), tables.numbers[counted].to(scores.dtype)
        scores[counted] = apply_penalties(
            scores[counted],
            tables.counts[held],
            tables.seen[held],
            numbers[:, step_tables.REPETITION],
            numbers[:, step_tables.PRESENCE],
            numbers[:, step_tables.FREQUENCY],
        )
    for index, count in enumerate(tables.choices[:, step_tables.BIASES].tolist()):
        scores[index, tables.biased[index, :count]] += tables.biases[index, :count].to(scores.dtype)
    return scores


def route_rows(
    scores: Tensor,
    previous: Tensor,
    stayed: Tensor,
    stay: Tensor,
    top: Tensor,
    most: int,
    asked: Tensor,
    router_rows: Tensor,
    expert_rows: Tensor,
    complement: Tensor,
    weight: Tensor,
    exact: Tensor,
) -> RoutedRows:
    """The sources of n routed sequences, for the tables of a fused step whose SCALE is ``weight``.

    Args:
        scores: [n, experts] of the routers' heads; one that is not finite makes the sequence's weights NaN.
        previous, stayed, stay: [n] int64, see ``route_tokens``; they count where ``top`` is 1.
        top: [n] int64, how many experts speak (see ``mix_experts``); ``most`` at most.
        asked: [n] bool, whether experts are asked at all; where not, the score is the router's logits as they are.
        router_rows, expert_rows: [n] and [n, experts] int64, rows of the step's logits.
        complement, weight: [n], of the log-probabilities of router and experts.
        exact: [n] bool. Where not, a single expert is added by a linear sum of logits, which needs no normalisers: off
            by a constant a row, which nothing but a repetition penalty sees.
    """
    leading = torch.where(top == 1, route_tokens(scores, previous, stayed, stay), scores.argmax(dim=-1))
    weights = torch.zeros(len(scores), 1 + most, dtype=torch.float32, device=scores.device)
    rows = router_rows[:, None].expand(-1, 1 + most).clone()
    alone = (top == 1) & ~exact
    for index, count in enumerate(top.tolist()):
        experts, shares = leading[index : index + 1], torch.ones(1, device=scores.device)
        if count > 1:
            mixed = mix_experts(scores[index : index + 1], count)
            experts, shares = mixed[0][0], mixed[1][0].float()
        elif alone[index]:
            shares = weight[index : index + 1].float()
        if not bool(torch.isfinite(scores[index]).all()):
            shares = torch.full_like(shares, torch.nan)
        rows[index, 1 : 1 + count] = expert_rows[index, experts]
        if asked[index]:
            weights[index, 1 : 1 + count] = shares
    weights[:, 0] = torch.where(asked, complement.float(), 1.0)
    rules = torch.where(asked & ~alone, step_tables.ROUTED, step_tables.LINEAR).to(torch.int32)
    return RoutedRows(
        rows,
        weights,
        rules,
        torch.where(asked, leading, previous),
        torch.where(asked, torch.where(leading == previous, stayed + 1, 1), stayed),
    )
