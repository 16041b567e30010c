"""The tables that the fused step reads: what slots know of a step's sequences, and what only this step brings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ladle.kernels import step_tables as columns
from ladle.kernels.step_tables import Budgets, StepTables, linear_tables
from ladle.server.engine.device.transfers import Array, send
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.candidates import CandidateValues, added_values
from ladle.server.engine.scores.grammar_masks import Allowed
from ladle.server.engine.scores.host_tables import HostTables
from ladle.server.engine.scores.router import Turn


@dataclass(frozen=True)
class Step:
    """What the sequences of a step have besides their slots.

    Attributes:
        rows: [rows of the lane table] int64, the row of the step's logits that each lane gave.
        values: of candidates, where a plan has a scorer.
        turns: who speaks, where a plan routes.
        allowed: the tokens that may come at all, where not all may.
        counted: (counts, seen) of tokens, where a request has penalties.
    """

    rows: Array
    values: Mapping[Sequence, CandidateValues] = field(default_factory=dict)
    turns: Mapping[Sequence, Turn] = field(default_factory=dict)
    allowed: Mapping[Sequence, Allowed] = field(default_factory=dict)
    counted: Mapping[Sequence, tuple[Tensor, Tensor]] = field(default_factory=dict)


def lay_out(
    tables: HostTables, sequences: Seq[Sequence], step: Step, dtype: torch.dtype, device: torch.device
) -> StepTables:
    """The tables of ``sequences``, at least one, on ``device``, for logits of ``dtype``; ``tables`` is written into."""
    choices = tables.choices
    real = np.float64 if dtype == torch.float64 else np.float32
    if tables.plain and not (step.values or step.turns or step.allowed or step.counted):
        linear = [tables.rows, tables.weights.astype(real), choices, tables.numbers.astype(real)]
        return linear_tables(*send(linear, device), truncates=tables.truncates)
    rows, weights = _with_turns(tables, sequences, step)
    candidates, values = _candidates(tables, sequences, step.values, dtype, device)
    counted = _place(sequences, step.counted, choices[:, columns.COUNTED])
    limited = _place(sequences, step.allowed, choices[:, columns.ALLOWED])
    biased, biases = _biases(tables, sequences)
    sent = send(
        [
            rows,
            weights.astype(real),
            choices,
            tables.numbers.astype(real),
            biased,
            biases.astype(real),
            tables.traced,
            *tables.budgets,
        ],
        device,
    )
    return StepTables(
        rows=sent[0],
        weights=sent[1],
        choices=sent[2],
        numbers=sent[3],
        candidates=candidates,
        values=values,
        budgets=Budgets(*sent[7:]),
        biased=sent[4],
        biases=sent[5],
        counts=_stacked([step.counted[s][0] for s in counted], torch.int32, device),
        seen=_stacked([step.counted[s][1] for s in counted], torch.bool, device),
        allowed=_stacked([step.allowed[s].mask for s in limited], torch.bool, device),
        traced=sent[6],
        linear=bool((choices[:, columns.RULE] == columns.LINEAR).all()),
        masks=bool((choices[:, columns.BASE] >= 0).any()),
        truncates=tables.truncates,
        wanted=int(choices[:, columns.WANTED].max()),
    )


def _with_turns(tables: HostTables, sequences: Seq[Sequence], step: Step) -> tuple[Array, Array]:
    """Rows and weights of all sources: of sequences that route the router and the experts whose turn it is."""
    rows, weights = tables.rows, tables.weights
    most = max((len(turn.lanes) for turn in step.turns.values()), default=0)
    if most >= rows.shape[1]:
        more = ((0, 0), (0, 1 + most - rows.shape[1]))
        rows, weights = np.pad(rows, more), np.pad(weights, more)
    for index, sequence in enumerate(sequences if step.turns else ()):
        if sequence not in step.turns:
            continue
        turn, plan = step.turns[sequence], sequence.request.plan
        assert plan.routing is not None
        router, stop = sequence.lanes[plan.routing.source], 1 + len(turn.lanes)
        rows[index, :stop] = [step.rows[lane.row] for lane in (router, *turn.lanes)]
        weights[index, :stop] = [1.0, *turn.shares]
        if turn.lanes:
            weights[index, 0], weight = plan.routing.factors(plan.normalize)
            tables.choices[index, columns.RULE] = columns.ROUTED
            # Where the router's scores are not numbers, neither are those of the sequence.
            tables.numbers[index, columns.SCALE] = weight if all(map(math.isfinite, turn.shares)) else math.nan
    return rows, weights


def _candidates(
    tables: HostTables,
    sequences: Seq[Sequence],
    values: Mapping[Sequence, CandidateValues],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Tokens and what is added to their scores, [sequences, most candidates]."""
    dtype, n = torch.promote_types(dtype, torch.float32), len(sequences)
    if not values:
        return torch.empty(n, 0, dtype=torch.int64, device=device), torch.empty(n, 0, dtype=dtype, device=device)
    # One at least, also where a grammar leaves no candidate at all.
    tokens = [torch.zeros(1, dtype=torch.int64, device=device)] * n
    added = [torch.zeros(1, dtype=dtype, device=device)] * n
    for index, sequence in enumerate(sequences):
        if sequence in values:
            scorer = sequence.request.plan.scorer
            assert scorer is not None
            tokens[index] = values[sequence].tokens
            added[index] = added_values(scorer, values[sequence]).to(dtype)
            tables.choices[index, columns.CANDIDATES] = len(tokens[index])
            tables.choices[index, columns.RESTRICTED] = scorer.restricted
    return pad_sequence(tokens, batch_first=True), pad_sequence(added, batch_first=True)


def _place(sequences: Seq[Sequence], held: Mapping[Sequence, object], column: Array) -> list[Sequence]:
    """The ``sequences`` that have something in ``held``; their place among these is written into ``column``."""
    if not held:
        return []
    found = [index for index, sequence in enumerate(sequences) if sequence in held]
    column[found] = range(len(found))
    return [sequences[index] for index in found]


def _biases(tables: HostTables, sequences: Seq[Sequence]) -> tuple[Array, Array]:
    """Logit biases as two arrays int64 and float64, [sequences, most biases], padded with zeros."""
    lengths = tables.choices[:, columns.BIASES]
    tokens = np.zeros((len(sequences), int(lengths.max())), dtype=np.int64)
    added = np.zeros(tokens.shape)
    for index in np.flatnonzero(lengths).tolist():
        pairs = np.array(sequences[index].request.sampling.logit_bias, dtype=np.float64)
        tokens[index, : len(pairs)], added[index, : len(pairs)] = pairs[:, 0], pairs[:, 1]
    return tokens, added


def _stacked(parts: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.stack(parts) if parts else torch.empty(0, 0, dtype=dtype, device=device)
