"""The tables that the fused step reads: what slots know of a step's sequences, and what only this step brings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ladle.kernels import step_tables as columns
from ladle.kernels.step_tables import Budgets, Ranges, StepTables, linear_tables
from ladle.server.engine.device.transfers import Array, send
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.candidates import CandidateValues, added_values
from ladle.server.engine.scores.expert_router import ExpertTurn
from ladle.server.engine.scores.grammar_masks import Allowed
from ladle.server.engine.scores.host_tables import HostTables


@dataclass(frozen=True)
class StepInputs:
    """What the sequences of a step have besides their slots.

    Attributes:
        logits_rows: [rows of the lane table] int64, the row of the step's logits that each lane gave.
        values: of candidates, where a plan has a scorer.
        turns: who speaks, where a plan routes.
        allowed: the tokens that may come at all, where not all may.
        counted: (counts, seen) of tokens, where a request has penalties.
    """

    logits_rows: Array
    values: Mapping[Sequence, CandidateValues] = field(default_factory=dict)
    turns: Mapping[Sequence, ExpertTurn] = field(default_factory=dict)
    allowed: Mapping[Sequence, Allowed] = field(default_factory=dict)
    counted: Mapping[Sequence, tuple[Tensor, Tensor]] = field(default_factory=dict)


def lay_out(
    host: HostTables, sequences: Seq[Sequence], step: StepInputs, dtype: torch.dtype, device: torch.device
) -> StepTables:
    """The tables of ``sequences``, at least one, on ``device``, for logits of ``dtype``; writes into their ``host``."""
    int_params, real = host.int_params, np.float64 if dtype == torch.float64 else np.float32
    source_rows, weights = _with_turns(host, sequences, step)
    held: dict[str, Any] = {}
    if step.values:
        held["candidates"], held["values"] = _candidates(host, sequences, step.values, dtype)
    # Counts and masks are stacked for the sequences that have them; a column of ``int_params`` says which row is whose.
    if step.counted:
        counted = _place(sequences, step.counted, int_params[:, columns.COUNTED])
        held["counts"], held["seen"] = (torch.stack([step.counted[s][part] for s in counted]) for part in (0, 1))
    if step.allowed:
        limited = _place(sequences, step.allowed, int_params[:, columns.ALLOWED])
        held["allowed"] = torch.stack([step.allowed[s].mask for s in limited])
    arrays = {
        "source_rows": source_rows,
        "weights": weights.astype(real),
        "int_params": int_params,
        "float_params": host.float_params.astype(real),
    }
    if not host.plain:
        arrays["biased"], biases = _biases(host, sequences)
        arrays |= {"biases": biases.astype(real), "traced": host.traced}
        arrays |= {**host.budgets._asdict(), **host.ranges._asdict()}
    # In one copy to the device.
    sent = dict(zip(arrays, send(list(arrays.values()), device), strict=True))
    params = sent["int_params"], sent["float_params"]
    plain = linear_tables(sent["source_rows"], sent["weights"], *params, host.truncates)
    # The common case ends here: linear sums with nothing sparse, for which the kernel has a leaner form.
    if host.plain and not (held or step.turns):
        return plain
    if not host.plain:
        held |= {name: sent[name] for name in ("biased", "biases", "traced")}
        held["budgets"] = Budgets(*(sent[name] for name in Budgets._fields))
        held["ranges"] = Ranges(*(sent[name] for name in Ranges._fields))
    return replace(
        plain,
        **held,
        linear=bool((int_params[:, columns.RULE] == columns.LINEAR).all()),
        masks=bool((int_params[:, columns.BASE] >= 0).any()),
        wanted=int(int_params[:, columns.WANTED].max()),
    )


def _with_turns(host: HostTables, sequences: Seq[Sequence], step: StepInputs) -> tuple[Array, Array]:
    """Rows and weights of all sources: of sequences that route the router and the experts whose turn it is."""
    source_rows, weights = host.source_rows, host.weights
    # Column 0 is the router's; the experts whose turn it is follow.
    most = max((len(turn.lanes) for turn in step.turns.values()), default=0)
    # Routed sequences add no sources of their own: columns for the router and its experts are added where the step's
    # other plans have fewer.
    if most >= source_rows.shape[1]:
        more = np.zeros((len(source_rows), 1 + most - source_rows.shape[1]), dtype=np.int64)
        source_rows, weights = np.concatenate((source_rows, more), axis=1), np.concatenate((weights, more), axis=1)
    for index, sequence in enumerate(sequences if step.turns else ()):
        if sequence not in step.turns:
            continue
        turn, plan = step.turns[sequence], sequence.request.plan
        assert plan.routing is not None
        router, stop = sequence.lanes[plan.routing.source], 1 + len(turn.lanes)
        source_rows[index, :stop] = [step.logits_rows[lane.row] for lane in (router, *turn.lanes)]
        weights[index, :stop] = [1.0, *turn.shares]
        # The router's complement and the expert's weight (FusionRoute); where no expert was asked, the router alone.
        if turn.lanes:
            weights[index, 0], weight = plan.routing.factors(plan.normalize)
            host.int_params[index, columns.RULE] = columns.ROUTED
            # Where the router's scores are not numbers, neither are those of the sequence.
            host.float_params[index, columns.SCALE] = weight if all(map(math.isfinite, turn.shares)) else math.nan
    return source_rows, weights


def _candidates(
    host: HostTables, sequences: Seq[Sequence], values: Mapping[Sequence, CandidateValues], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Tokens and what is added to their scores, [sequences, most candidates]."""
    # One at least, also where a grammar leaves no candidate at all.
    first = next(iter(values.values())).tokens
    tokens = [first.new_zeros(1)] * len(sequences)
    added = [first.new_zeros(1, dtype=torch.promote_types(dtype, torch.float32))] * len(sequences)
    for index, sequence in enumerate(sequences):
        if sequence in values:
            scorer = sequence.request.plan.scorer
            assert scorer is not None
            tokens[index] = values[sequence].tokens
            added[index] = added_values(scorer, values[sequence]).to(added[index].dtype)
            host.int_params[index, columns.CANDIDATES] = len(tokens[index])
            host.int_params[index, columns.RESTRICTED] = scorer.restricted
    return pad_sequence(tokens, batch_first=True), pad_sequence(added, batch_first=True)


def _place(sequences: Seq[Sequence], held: Mapping[Sequence, object], column: Array) -> list[Sequence]:
    """The ``sequences`` that have something in ``held``; their place among these is written into ``column``."""
    indices = [index for index, sequence in enumerate(sequences) if sequence in held]
    column[indices] = range(len(indices))
    return [sequences[index] for index in indices]


def _biases(host: HostTables, sequences: Seq[Sequence]) -> tuple[Array, Array]:
    """Logit biases as two arrays int64 and float64, [sequences, most biases], padded with zeros."""
    lengths = host.int_params[:, columns.BIASES]
    tokens = np.zeros((len(sequences), int(lengths.max())), dtype=np.int64)
    added = np.zeros(tokens.shape)
    for index in np.flatnonzero(lengths).tolist():
        pairs = np.array(sequences[index].request.sampling.logit_bias, dtype=np.float64)
        tokens[index, : len(pairs)], added[index, : len(pairs)] = pairs[:, 0], pairs[:, 1]
    return tokens, added
