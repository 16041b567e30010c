"""The fused step as one operation after the other, on tables of mixed plans: its meaning, and what a CPU runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ladle.kernels import step_tables
from ladle.kernels.entropy import entropy_temperatures
from ladle.kernels.reference import operations as plain
from ladle.kernels.reference.route_tokens import combine_routed, mix_experts, route_tokens
from ladle.kernels.step_tables import RoutedRows, SampledTokens, StepTables
from ladle.kernels.trust_region import within_budget


class Operations(NamedTuple):
    """What a step is made of: plain torch, or what a device has in its place with the same meaning."""

    combine_logits: Callable[..., Tensor] = plain.combine_logits
    combine_divergence: Callable[..., Tensor] = plain.combine_divergence
    combine_routed: Callable[..., Tensor] = combine_routed
    add_candidate_values: Callable[..., Tensor] = plain.add_candidate_values
    rule_out_implausible: Callable[..., Tensor] = plain.rule_out_implausible
    apply_penalties: Callable[..., Tensor] = plain.apply_penalties
    sample: Callable[..., Tensor] = plain.sample
    token_logprobs: Callable[..., Tensor] = plain.token_logprobs
    best_logprobs: Callable[..., tuple[Tensor, Tensor]] = plain.best_logprobs


_PLAIN = Operations()


def fused_step(logits: Tensor, tables: StepTables, do: Operations = _PLAIN) -> SampledTokens:
    """One step of n sequences, from ``logits`` [rows, vocabulary] of all their sources to tokens and logprobs: the
    operations ``do`` one after the other, in the order said in ``reference.operations``, on what ``tables`` holds.
    """
    # Guidance first. What is traced is taken before ``allowed`` rules tokens out, logprobs after that, and draws after
    # penalties and bias: three stages of the same rows.
    scores = guided_scores(logits, tables, do)
    guided = scores.index_select(0, tables.traced) if len(tables.traced) else scores[:0]
    final = _allowed(scores, tables.int_params, tables)
    float_params, int_params = tables.float_params, tables.int_params
    drawn = _adjusted(final, tables, do)
    tokens = do.sample(
        drawn,
        _temperatures(drawn, tables),
        int_params[:, step_tables.TOP_K].long(),
        float_params[:, step_tables.TOP_P],
        float_params[:, step_tables.MIN_P],
        int_params[:, step_tables.KEY_0 : step_tables.KEY_1 + 1],
    )
    return SampledTokens(tokens, do.token_logprobs(final, tokens), *_alternatives(final, tables, do), guided)


def guided_scores(logits: Tensor, tables: StepTables, do: Operations = _PLAIN) -> Tensor:
    """The combined scores of n sequences as guidance leaves them: rules, candidate values, KL budgets, plausibility
    masks. A mask is judged among the tokens that ``tables`` allow, so that it never rules out all of them, but the
    others are not ruled out yet. Float32 (float64 for float64 logits), [n, vocabulary].
    """
    scores = _by_rule(logits, tables, do)
    int_params = tables.int_params
    counts = int_params[:, step_tables.CANDIDATES].tolist() if tables.candidates.shape[1] else ()
    for index, count in enumerate(counts):
        # One by one: the number of candidates differs, and there are few such sequences.
        restricted = int_params[index, None, step_tables.RESTRICTED] != 0
        if count == 0 and not bool(restricted):
            continue
        tokens, values = tables.candidates[index, None, :count], tables.values[index, None, :count]
        do.add_candidate_values(scores[index : index + 1], tokens, values, restricted & False, restricted)
    # KL budgets: scores of sequences that have one are drawn back towards their base row.
    sequences, bases, nats = tables.budgets
    if len(sequences):
        base = logits.index_select(0, bases).to(scores.dtype)
        scores[sequences] = within_budget(scores.index_select(0, sequences), base, nats)
    # Plausibility masks last: they look at the base's own logits, not at what guidance made of them.
    masked = (int_params[:, step_tables.BASE] >= 0).nonzero()[:, 0] if tables.masks else int_params[:0, 0]
    if masked.numel():
        own, float_params = int_params.index_select(0, masked), tables.float_params.index_select(0, masked)
        base = logits.index_select(0, own[:, step_tables.BASE].long()).to(scores.dtype)
        scores[masked] = do.rule_out_implausible(
            scores.index_select(0, masked),
            _allowed(base, own, tables),
            own[:, step_tables.MASK_TOP_K].long(),
            float_params[:, step_tables.MASK_TOP_P],
            float_params[:, step_tables.MASK_RELATIVE],
        )
    return scores


def _by_rule(logits: Tensor, tables: StepTables, do: Operations) -> Tensor:
    """A fresh tensor [n, vocabulary]: the sources of every sequence under its rule."""
    if tables.linear:
        return do.combine_logits(logits, tables.source_rows, tables.weights)
    rules, scale = tables.int_params[:, step_tables.RULE].tolist(), tables.float_params[:, step_tables.SCALE]
    if len(set(rules)) == 1:
        return _under(rules[0], logits, tables.source_rows, tables.weights, scale, do)
    # Sequences of several rules: each rule takes its own ones out of the batch and puts their scores back.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.new_empty((len(rules), logits.shape[1]), dtype=dtype)
    for rule in set(rules):
        own = torch.tensor([i for i, other in enumerate(rules) if other == rule], device=logits.device)
        scores[own] = _under(rule, logits, tables.source_rows[own], tables.weights[own], scale[own], do)
    return scores


def _under(rule: int, logits: Tensor, source_rows: Tensor, weights: Tensor, scale: Tensor, do: Operations) -> Tensor:
    """The sources of sequences under one ``rule``."""
    if rule == step_tables.LINEAR:
        return do.combine_logits(logits, source_rows, weights)
    if rule == step_tables.DIVERGENCE:
        return do.combine_divergence(logits, source_rows, weights, scale)
    normalize = torch.zeros(len(source_rows), dtype=torch.bool, device=logits.device)
    router, experts = logits[source_rows[:, 0]], logits[source_rows[:, 1:]]
    return do.combine_routed(router, experts, weights[:, 1:], weights[:, 0], scale, normalize)


def _allowed(scores: Tensor, int_params: Tensor, tables: StepTables) -> Tensor:
    """``scores``, -inf in place where a row's ``int_params`` do not allow a token. NaN stays where a token may come."""
    if len(tables.allowed) == 0:
        return scores
    limited = (int_params[:, step_tables.ALLOWED] >= 0).nonzero()[:, 0]
    if limited.numel():
        held = int_params[limited, step_tables.ALLOWED].long()
        scores[limited] = scores[limited].masked_fill_(~tables.allowed[held], -torch.inf)
    return scores


def _adjusted(final: Tensor, tables: StepTables, do: Operations) -> Tensor:
    """``final`` with penalties and logit bias; a copy only where there are any, because logprobs are of ``final``."""
    if len(tables.counts) == 0 and tables.biased.shape[1] == 0:
        return final
    scores = final.clone()
    counted = (tables.int_params[:, step_tables.COUNTED] >= 0).nonzero()[:, 0]
    if counted.numel():
        held, float_params = (
            tables.int_params[counted, step_tables.COUNTED].long(),
            tables.float_params[counted].to(scores.dtype),
        )
        scores[counted] = do.apply_penalties(
            scores[counted],
            tables.counts[held],
            tables.seen[held],
            float_params[:, step_tables.REPETITION],
            float_params[:, step_tables.PRESENCE],
            float_params[:, step_tables.FREQUENCY],
        )
    # Each token stands in a row's list once, so that an indexed addition adds every bias.
    for index, count in enumerate(tables.int_params[:, step_tables.BIASES].tolist()):
        if count:
            scores[index, tables.biased[index, :count]] += tables.biases[index, :count].to(scores.dtype)
    return scores


def _temperatures(drawn: Tensor, tables: StepTables) -> Tensor:
    """[n], of what is ``drawn`` from."""
    temperatures = tables.float_params[:, step_tables.TEMPERATURE]
    warmed, spreads, exponents = tables.ranges
    if len(warmed) == 0:
        return temperatures
    own = entropy_temperatures(drawn.index_select(0, warmed), temperatures[warmed], spreads, exponents)
    return temperatures.index_copy(0, warmed, own)


def _alternatives(final: Tensor, tables: StepTables, do: Operations) -> tuple[Tensor, Tensor]:
    """Tokens and logprobs [n, wanted], best first."""
    n, most = len(final), min(tables.wanted, final.shape[1])
    if most == 0:
        return tables.int_params.new_empty((n, 0), dtype=torch.int64), final.new_empty((n, 0))
    # Where all want as many, the best are taken as they come; else each is cut to what it wants.
    wanted = tables.int_params[:, step_tables.WANTED]
    if min(wanted.tolist()) >= most:
        return do.best_logprobs(final, most)[::-1]
    tokens = torch.full((n, most), -1, dtype=torch.int64, device=final.device)
    logprobs = final.new_full((n, most), -torch.inf)
    own = wanted.nonzero()[:, 0]
    best, ids = do.best_logprobs(final.index_select(0, own), most)
    beyond = torch.arange(most, device=final.device) >= wanted[own, None]
    tokens[own], logprobs[own] = ids.masked_fill_(beyond, -1), best.masked_fill_(beyond, -torch.inf)
    return tokens, logprobs


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
    # A single expert may stay on for some tokens (``route_tokens``); several are always the best by score.
    leading = torch.where(top == 1, route_tokens(scores, previous, stayed, stay), scores.argmax(dim=-1))
    weights = torch.zeros(len(scores), 1 + most, dtype=torch.float32, device=scores.device)
    source_rows = router_rows[:, None].expand(-1, 1 + most).clone()
    alone = (top == 1) & ~exact
    for index, count in enumerate(top.tolist()):
        # One expert has the whole share; several share by the softmax of their scores; alone without normalisers, the
        # share is the request's own weight.
        experts, shares = leading[index : index + 1], torch.ones(1, device=scores.device)
        if count > 1:
            mixed = mix_experts(scores[index : index + 1], count)
            experts, shares = mixed[0][0], mixed[1][0].float()
        elif alone[index]:
            shares = weight[index : index + 1].float()
        if not bool(torch.isfinite(scores[index]).all()):
            shares = torch.full_like(shares, torch.nan)
        source_rows[index, 1 : 1 + count] = expert_rows[index, experts]
        if asked[index]:
            weights[index, 1 : 1 + count] = shares
    weights[:, 0] = torch.where(asked, complement.float(), 1.0)
    # Without normalisers, and for a sequence whose experts are not asked, the fused step adds up raw logits.
    rules = torch.where(asked & ~alone, step_tables.ROUTED, step_tables.LINEAR).to(torch.int32)
    return RoutedRows(
        source_rows,
        weights,
        rules,
        # What the next step's hysteresis starts from; a token without experts leaves it as it was.
        torch.where(asked, leading, previous),
        torch.where(asked, torch.where(leading == previous, stayed + 1, 1), stayed),
    )
