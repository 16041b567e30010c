"""Explicit values: the candidates of a step, and the second forward of the step that values them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladle.guidance.plan import Scorer
from ladle.server.engine.device.transfers import Array, send_one
from ladle.server.engine.forward.layout import HostLayout
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.grammar_masks import Allowed


@dataclass(frozen=True)
class CandidateValues:
    """The candidates for one token, and what they are worth.

    Attributes:
        tokens: [k] int64, best first by the first source.
        values: [k] by lane, as the heads gave them.
    """

    tokens: Tensor
    values: Mapping[Lane, Tensor]


def value_candidates(
    logits: Tensor,
    logits_rows: Array,
    sequences: Seq[Sequence],
    layout: Callable[[Seq[Lane], Seq[int], Seq[int]], HostLayout],
    hidden: Callable[[Lane, HostLayout, Tensor], Tensor],
    allowed: Mapping[Sequence, Allowed],
) -> dict[Sequence, CandidateValues]:
    """The candidates of ``sequences``, which have a scorer, and what the value lanes of each say of them.

    ``logits_rows`` [rows of the lane table] int64: the row of ``logits`` [rows, vocabulary] that each lane gave.

    Where ``allowed`` has something for a sequence, its candidates are the best of what that allows, and fewer where it
    allows fewer.

    All that lanes of one set of weights have to value goes through one forward: k new tokens per lane over the state it
    has. ``layout`` lays such a forward out, ``hidden`` runs it on the weights of a lane, with the candidates' ids, and
    returns [tokens, hidden].
    """
    chosen: dict[Sequence, Tensor] = {}
    counts: dict[Sequence, int] = {}
    for sequence in sequences:
        scores, counts[sequence] = logits[int(logits_rows[sequence.lanes[0].row])], sequence.candidates
        # Ruled out before the best are taken, or a grammar could leave none of them.
        if sequence in allowed:
            scores = scores.masked_fill(~allowed[sequence].mask, -torch.inf)
            counts[sequence] = min(sequence.candidates, allowed[sequence].count)
        # Tokens that are not allowed sort last; they are valued to keep the forward's size fixed, and then dropped.
        chosen[sequence] = scores.topk(sequence.candidates).indices
    # One forward per set of resident weights, which the value lanes of all sequences share, coefficients row by row.
    groups: dict[object, list[tuple[Sequence, Lane]]] = {}
    for sequence in chosen:
        for lane in sequence.lanes:
            if lane.scores:
                groups.setdefault(lane.materialised, []).append((sequence, lane))
    values: dict[Sequence, dict[Lane, Tensor]] = {sequence: {} for sequence in chosen}
    owner = {lane: sequence for members in groups.values() for sequence, lane in members}
    for members in groups.values():
        lanes = [lane for _, lane in members]
        plan = layout(lanes, [s.length(lane) for s, lane in members], [s.candidates for s, _ in members])
        ordered = list(dict.fromkeys(plan.logit_lanes))
        states = hidden(lanes[0], plan, torch.cat([chosen[owner[lane]] for lane in ordered]))
        # The layout sorts lanes by their buckets; hidden states come back in that order, k rows per lane.
        start = 0
        for lane in ordered:
            stop = start + owner[lane].candidates
            assert lane.head is not None
            values[owner[lane]][lane] = lane.head(states[start:stop])
            start = stop
    return {
        sequence: CandidateValues(
            tokens[: counts[sequence]],
            {lane: values[sequence][lane][: counts[sequence]] for lane in sequence.lanes if lane.scores},
        )
        for sequence, tokens in chosen.items()
    }


def keep_chosen(
    values: Mapping[Sequence, CandidateValues],
    candidate_indices: Mapping[Sequence, int | None],
    table: LaneTable,
    cache_of: Callable[[Lane], KVCache],
) -> set[Sequence]:
    """Keep the state of the candidates that were drawn, instead of computing it again; returns whose it was.

    ``candidate_indices``: which of its candidates a sequence drew. One that drew a token from outside them, None,
    computes it in the next step.
    """
    kept: set[Sequence] = set()
    moves: dict[KVCache, list[tuple[int, int]]] = {}
    for sequence, candidates in values.items():
        index = candidate_indices[sequence]
        if index is None:
            continue
        kept.add(sequence)
        for lane in candidates.values:
            position = sequence.length(lane)
            # From the scratch slot, where the candidate's key and value were written, to the lane's next slot.
            source = lane.scratch[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE
            target = int(table.blocks[lane.row, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            moves.setdefault(cache_of(lane), []).append((source, target))
    for cache, pairs in moves.items():
        # One transfer and one copy per pool: slots of all lanes that keep something, in every layer.
        copied = send_one(pairs, cache.layers[0].device, np.int64)
        cache.copy(copied[:, 0], copied[:, 1])
    return kept


def added_values(scorer: Scorer, valued: CandidateValues) -> Tensor:
    """What is added to the scores of the candidates, [k]: strength * sum_s weight_s f(V_s), minus its mean where values
    are centred (see ``Scorer``)."""
    # Summed in the order of the plan's sources; centring takes their mean over the k candidates away, which leaves the
    # mass of the candidates against the rest about as it was.
    total: Tensor | None = None
    for lane, values in valued.values.items():
        part = F.logsigmoid(values) if scorer.transform == "log_sigmoid" else values
        part = part * (scorer.strength * lane.source.weight)
        total = part if total is None else total + part
    assert total is not None, "a scorer comes with sources that have a head"
    return total - total.mean(dim=-1, keepdim=True) if scorer.centred else total
