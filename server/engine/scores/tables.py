"""The plans and sampling parameters of a step's sequences as the tables that the fused step reads."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ladle.kernels import step_tables as columns
from ladle.kernels.step_tables import StepTables
from ladle.server.engine.device.transfers import Array, send
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.candidates import CandidateValues
from ladle.server.engine.scores.combiner import Rows, added_lanes, worth
from ladle.server.engine.scores.grammar_masks import Allowed
from ladle.server.engine.scores.router import Turn

_RULES = {"linear": columns.LINEAR, "forward_kl": columns.DIVERGENCE, "alpha": columns.DIVERGENCE}


@dataclass(frozen=True)
class Step:
    """What the sequences of a step have besides their plans: rows of the logits, values of candidates, turns, masks of
    grammars, (counts, seen) of those with penalties; ``choices``, with the keys of the draws, and ``numbers`` as far as
    sampling parameters decide them (see ``SlotTables``)."""

    rows: Rows
    values: Mapping[Sequence, CandidateValues]
    turns: Mapping[Sequence, Turn]
    allowed: Mapping[Sequence, Allowed]
    counted: Mapping[Sequence, tuple[Tensor, Tensor]]
    choices: Array
    numbers: Array


@dataclass(frozen=True)
class HostRoutes:
    """What ``route_rows`` is to know of a step's sequences, as arrays: ``routes`` [sequences] bool, whether a router
    chooses the expert that is added to it; for those ``history`` [sequences, 3] int64, (previous, stayed, stay);
    ``experts`` [sequences, experts] int64, rows of the logits; ``factors`` [sequences, 2] float32, (complement,
    weight); ``thresholds`` [sequences] float64, of the chance that an expert is asked, -inf for always."""

    routes: Array
    history: Array
    experts: Array
    factors: Array
    thresholds: Array


@dataclass(frozen=True)
class HostTables:
    """``StepTables`` of linear sums, as arrays. ``routed``: of a step in which a router chooses on the device; the
    first source of such a sequence is its router."""

    rows: Array
    weights: Array
    choices: Array
    numbers: Array
    routed: HostRoutes | None = None


def lay_out(sequences: Seq[Sequence], step: Step, device: torch.device) -> StepTables:
    """The tables of ``sequences``, at least one, on ``device``."""
    choices, numbers = step.choices.copy(), step.numbers.copy()
    pairs = [_sources(s, step, choices[i], numbers[i]) for i, s in enumerate(sequences)]
    for index, sequence in enumerate(sequences):
        _mask(sequence, step.rows, choices[index], numbers[index])
        if sequence in step.values:
            scorer = sequence.request.plan.scorer
            assert scorer is not None
            choices[index, columns.CANDIDATES] = len(step.values[sequence].tokens)
            choices[index, columns.RESTRICTED] = scorer.restricted
    _number(sequences, step.counted, choices[:, columns.COUNTED])
    _number(sequences, step.allowed, choices[:, columns.ALLOWED])
    counted = [sequence for sequence in sequences if sequence in step.counted]
    limited = [sequence for sequence in sequences if sequence in step.allowed]
    candidates, values = _candidates(sequences, step.values, device)
    bias = _padded([list(s.request.sampling.logit_bias) for s in sequences])
    rows, weights, chosen, options, biased, biases = send([*_padded(pairs), choices, numbers, *bias], device)

    def stacked(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.stack(parts) if parts else torch.empty(0, 0, dtype=dtype, device=device)

    return StepTables(
        rows=rows,
        weights=weights,
        choices=chosen,
        numbers=options,
        candidates=candidates,
        values=values,
        biased=biased,
        biases=biases,
        counts=stacked([step.counted[s][0] for s in counted], torch.int32),
        seen=stacked([step.counted[s][1] for s in counted], torch.bool),
        allowed=stacked([step.allowed[s].mask for s in limited], torch.bool),
        linear=bool((choices[:, columns.RULE] == columns.LINEAR).all()),
        masks=bool((choices[:, columns.BASE] >= 0).any()),
        truncates=any(_truncates(s.request.sampling) for s in sequences),
        wanted=int(choices[:, columns.WANTED].max()),
    )


def _sources(sequence: Sequence, step: Step, choices: Array, numbers: Array) -> list[tuple[int, float]]:
    """(row, weight) of the sources; sets the rule."""
    plan, turn = sequence.request.plan, step.turns.get(sequence)
    if turn is None:
        choices[columns.RULE] = _RULES[plan.rule]
        numbers[columns.SCALE] = plan.alpha if plan.rule == "alpha" else 1.0
        return [(step.rows[lane], lane.source.weight) for lane in added_lanes(sequence)]
    routing = plan.routing
    assert routing is not None
    own = step.rows[sequence.lanes[routing.source]]
    if not turn.lanes:
        return [(own, 1.0)]
    complement, weight = routing.factors(plan.normalize)
    shares = turn.shares
    if len(shares) == 1 and sequence.request.sampling.repetition_penalty == 1.0:
        # Logits instead of log-probabilities: off by a constant, which only a repetition penalty sees.
        return [(own, complement), (step.rows[turn.lanes[0]], weight * shares[0])]
    choices[columns.RULE] = columns.ROUTED
    numbers[columns.SCALE] = weight
    return [(own, complement), *((step.rows[lane], share) for lane, share in zip(turn.lanes, shares, strict=True))]


def _mask(sequence: Sequence, rows: Rows, choices: Array, numbers: Array) -> None:
    mask = sequence.request.plan.mask
    if mask is None:
        return
    choices[columns.BASE] = rows[sequence.lanes[0]]
    if mask.kind == "top_k":
        choices[columns.MASK_TOP_K] = mask.value
    else:
        numbers[columns.MASK_TOP_P if mask.kind == "top_p" else columns.MASK_RELATIVE] = mask.value


def _truncates(params: SamplingParams) -> bool:
    return params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _number(sequences: Seq[Sequence], held: Mapping[Sequence, object], column: Array) -> None:
    """Write into ``column`` the place of each sequence among those that have something in ``held``."""
    found = [index for index, sequence in enumerate(sequences) if sequence in held]
    column[found] = range(len(found))


def _candidates(
    sequences: Seq[Sequence], values: Mapping[Sequence, CandidateValues], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens and what is added to their scores, [sequences, most candidates]."""
    tokens = [torch.empty(0, dtype=torch.int64, device=device)] * len(sequences)
    added = [torch.empty(0, device=device)] * len(sequences)
    for index, sequence in enumerate(sequences):
        if sequence not in values:
            continue
        found, scorer = values[sequence], sequence.request.plan.scorer
        assert scorer is not None
        bonus = worth(sequence.request.plan, found).to(torch.float32)
        tokens[index], added[index] = found.tokens, bonus - bonus.mean() if scorer.centred else bonus
    return pad_sequence(tokens, batch_first=True), pad_sequence(added, batch_first=True)


def _padded(rows: Seq[Seq[tuple[int, float]]]) -> tuple[Array, Array]:
    """Pairs as two arrays int64 and float32, [rows, most pairs], padded with zeros."""
    width = max((len(row) for row in rows), default=0)
    padded = np.array([[*row, *[(0, 0.0)] * (width - len(row))] for row in rows], dtype=np.float64)
    padded = padded.reshape(len(rows), width, 2)
    return padded[..., 0].astype(np.int64), padded[..., 1].astype(np.float32)
