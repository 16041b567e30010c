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
from ladle.server.engine.candidates import CandidateValues
from ladle.server.engine.combiner import Rows, added_lanes, worth
from ladle.server.engine.router import Turn
from ladle.server.engine.sampling import SamplingParams
from ladle.server.engine.sequence import Sequence

_RULES = {"linear": columns.LINEAR, "forward_kl": columns.DIVERGENCE, "alpha": columns.DIVERGENCE}


@dataclass(frozen=True)
class Step:
    """What the sequences of a step have besides their plans: rows of the logits, values of candidates, turns, masks of
    grammars, (counts, seen) of those with penalties, and keys [sequences, 2] int32 of the draws."""

    rows: Rows
    values: Mapping[Sequence, CandidateValues]
    turns: Mapping[Sequence, Turn]
    allowed: Mapping[Sequence, Tensor]
    counted: Mapping[Sequence, tuple[Tensor, Tensor]]
    keys: np.ndarray


def lay_out(sequences: Seq[Sequence], step: Step, device: torch.device) -> StepTables:
    """The tables of ``sequences``, at least one."""
    n = len(sequences)
    choices = np.zeros((n, columns.CHOICES), dtype=np.int32)
    numbers = np.zeros((n, columns.NUMBERS), dtype=np.float32)
    choices[:, [columns.BASE, columns.COUNTED, columns.ALLOWED]] = -1
    choices[:, [columns.KEY_0, columns.KEY_1]] = step.keys
    numbers[:, [columns.SCALE, columns.MASK_TOP_P]] = 1.0
    pairs = [_sources(s, step, choices[i], numbers[i]) for i, s in enumerate(sequences)]
    for index, sequence in enumerate(sequences):
        _mask(sequence, step.rows, choices[index], numbers[index])
        _sampling(sequence.request.sampling, choices[index], numbers[index])
    counted = _rows_of(sequences, step.counted, choices[:, columns.COUNTED])
    limited = _rows_of(sequences, step.allowed, choices[:, columns.ALLOWED])
    candidates, values = _candidates(sequences, step.values, choices, device)
    biases = [s.request.sampling.logit_bias for s in sequences]
    padded = _padded(pairs)
    biased = _padded([list(bias) for bias in biases])
    wanted = int(choices[:, columns.WANTED].max())

    def tensor(array: np.ndarray) -> Tensor:
        table = torch.from_numpy(array)
        # Pinned, so that the copy waits in the GPU's queue and not here for the forward to end.
        return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)

    def stacked(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.stack(parts) if parts else torch.empty(0, 0, dtype=dtype, device=device)

    return StepTables(
        rows=tensor(padded[0]),
        weights=tensor(padded[1]),
        choices=tensor(choices),
        numbers=tensor(numbers),
        candidates=candidates,
        values=values,
        biased=tensor(biased[0]),
        biases=tensor(biased[1]),
        counts=stacked([step.counted[s][0] for s in counted], torch.int32),
        seen=stacked([step.counted[s][1] for s in counted], torch.bool),
        allowed=stacked([step.allowed[s] for s in limited], torch.bool),
        linear=bool((choices[:, columns.RULE] == columns.LINEAR).all()),
        masks=bool((choices[:, columns.BASE] >= 0).any()),
        truncates=any(_truncates(s.request.sampling) for s in sequences),
        wanted=wanted,
    )


def _sources(sequence: Sequence, step: Step, choices: np.ndarray, numbers: np.ndarray) -> list[tuple[int, float]]:
    """(row, weight) of the sources; sets the rule."""
    plan, turn = sequence.request.plan, step.turns.get(sequence)
    if turn is None:
        choices[columns.RULE] = _RULES[plan.rule]
        numbers[columns.SCALE] = plan.alpha if plan.rule == "alpha" else 1.0
        lanes = [lane for lane in added_lanes(sequence) if not lane.scores and lane.source.weight != 0]
        return [(step.rows[lane], lane.source.weight) for lane in lanes]
    routing = plan.routing
    assert routing is not None
    own = step.rows[sequence.lanes[routing.source]]
    if not turn.lanes:
        return [(own, 1.0)]
    total = routing.complement + routing.weight if plan.normalize == "sum" else 1.0
    complement, weight = routing.complement / total, routing.weight / total
    shares = turn.shares.tolist()
    if len(shares) == 1 and sequence.request.sampling.repetition_penalty == 1.0:
        # Logits instead of log-probabilities: off by a constant, which only a repetition penalty sees.
        return [(own, complement), (step.rows[turn.lanes[0]], weight * shares[0])]
    choices[columns.RULE] = columns.ROUTED
    numbers[columns.SCALE] = weight
    return [(own, complement), *((step.rows[lane], share) for lane, share in zip(turn.lanes, shares, strict=True))]


def _mask(sequence: Sequence, rows: Rows, choices: np.ndarray, numbers: np.ndarray) -> None:
    mask = sequence.request.plan.mask
    if mask is None:
        return
    choices[columns.BASE] = rows[sequence.lanes[0]]
    if mask.kind == "top_k":
        choices[columns.MASK_TOP_K] = mask.value
    else:
        numbers[columns.MASK_TOP_P if mask.kind == "top_p" else columns.MASK_RELATIVE] = mask.value


def _sampling(params: SamplingParams, choices: np.ndarray, numbers: np.ndarray) -> None:
    choices[columns.TOP_K] = min(params.top_k, 2**31 - 1)
    choices[columns.WANTED] = params.logprobs or 0
    choices[columns.BIASES] = len(params.logit_bias)
    numbers[columns.TEMPERATURE] = params.temperature
    numbers[columns.TOP_P] = params.top_p
    numbers[columns.MIN_P] = params.min_p
    numbers[columns.REPETITION] = params.repetition_penalty
    numbers[columns.PRESENCE] = params.presence_penalty
    numbers[columns.FREQUENCY] = params.frequency_penalty


def _truncates(params: SamplingParams) -> bool:
    return params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _rows_of(sequences: Seq[Sequence], held: Mapping[Sequence, object], column: np.ndarray) -> list[Sequence]:
    """The sequences that have something in ``held``; their place among them goes into ``column``."""
    found = [(index, sequence) for index, sequence in enumerate(sequences) if sequence in held]
    column[[index for index, _ in found]] = range(len(found))
    return [sequence for _, sequence in found]


def _candidates(
    sequences: Seq[Sequence], values: Mapping[Sequence, CandidateValues], choices: np.ndarray, device: torch.device
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
        choices[index, columns.CANDIDATES] = len(found.tokens)
        choices[index, columns.RESTRICTED] = scorer.restricted
    return pad_sequence(tokens, batch_first=True), pad_sequence(added, batch_first=True)


def _padded(rows: Seq[Seq[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as two arrays int64 and float32, [rows, most pairs], padded with zeros."""
    width = max((len(row) for row in rows), default=0)
    padded = np.array([[*row, *[(0, 0.0)] * (width - len(row))] for row in rows], dtype=np.float64)
    padded = padded.reshape(len(rows), width, 2)
    return padded[..., 0].astype(np.int64), padded[..., 1].astype(np.float32)
