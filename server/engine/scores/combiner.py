"""From the logits of all sources to one score row a sequence: the plans' rules, candidate values and masks."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladle.guidance.plan import Plan
from ladle.kernels import dispatch
from ladle.server.engine.device.transfers import Array, send
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.candidates import CandidateValues
from ladle.server.engine.scores.grammar_masks import Allowed, restrict
from ladle.server.engine.scores.router import Turn, combine_turns

Rows = Mapping[Lane, int]
"""The row of the step's logits that a lane's source gave."""


class Combiner:
    """Executes any mix of plans on one matrix of logits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def combine(
        self,
        logits: Tensor,
        rows: Rows,
        sequences: Seq[Sequence],
        values: Mapping[Sequence, CandidateValues],
        turns: Mapping[Sequence, Turn],
        allowed: Mapping[Sequence, Allowed] = MappingProxyType({}),
    ) -> Tensor:
        """Scores [sequences, vocabulary], float32 (float64 for float64 logits), before bias, penalties and temperature.

        ``logits`` [rows, vocabulary]; ``values`` of the sequences whose plan has a scorer, ``turns`` of those that are
        routed, ``allowed`` of those with a grammar: what a plan's mask finds plausible is judged among the tokens that
        may come at all, so that it never rules out all of them.
        """
        scores = self._by_rule(logits, rows, sequences)
        routed = combine_turns(logits, rows, turns)
        for index, sequence in enumerate(sequences):
            if sequence in routed:
                scores[index] = routed[sequence]
        scored = [(index, values[sequence]) for index, sequence in enumerate(sequences) if sequence in values]
        for index, found in scored:
            # One by one: the number of candidates differs, and there are few.
            plan = sequences[index].request.plan
            assert plan.scorer is not None
            dispatch.add_candidate_values(
                scores[index : index + 1],
                found.tokens[None],
                worth(plan, found)[None],
                *send([np.array([plan.scorer.centred]), np.array([plan.scorer.restricted])], self._device),
            )
        scores = self._within_budgets(scores, logits, rows, sequences)
        self._mask(scores, logits, rows, sequences, allowed)
        return scores

    def _within_budgets(self, scores: Tensor, logits: Tensor, rows: Rows, sequences: Seq[Sequence]) -> Tensor:
        """``scores`` with those of sequences that have a KL budget drawn back to it."""
        limited = [(i, s.request.plan.kl_budget, rows[s.lanes[0]]) for i, s in enumerate(sequences)]
        found = [(index, budget, row) for index, budget, row in limited if budget is not None]
        if found:
            index, budgets, first = zip(*found, strict=True)
            places, rows_of = send([np.array(index), np.array(first)], self._device)
            base = logits.index_select(0, rows_of).to(scores.dtype)
            own = scores.index_select(0, places)
            scores[places] = dispatch.within_budget(own, base, torch.tensor(budgets, dtype=torch.float64))
        return scores

    def _by_rule(self, logits: Tensor, rows: Rows, sequences: Seq[Sequence]) -> Tensor:
        other = [index for index, s in enumerate(sequences) if s.request.plan.rule != "linear"]
        if not other:
            return dispatch.combine_logits(logits, *self._sources(rows, sequences))
        linear = [index for index, s in enumerate(sequences) if s.request.plan.rule == "linear"]
        parts: list[Tensor] = []
        if linear:
            parts.append(dispatch.combine_logits(logits, *self._sources(rows, [sequences[i] for i in linear])))
        plans = [sequences[index].request.plan for index in other]
        alphas = [plan.alpha if plan.rule == "alpha" else 1.0 for plan in plans]
        alpha, order = send([np.array(alphas, dtype=np.float32), np.argsort(linear + other)], self._device)
        sources = self._sources(rows, [sequences[index] for index in other])
        parts.append(dispatch.combine_divergence(logits, *sources, alpha))
        return torch.cat(parts).index_select(0, order)

    def _sources(self, rows: Rows, sequences: Seq[Sequence]) -> tuple[Tensor, Tensor]:
        """Rows and weights [sequences, most sources] of the language models that take part, padded with weight 0."""
        pairs = [[(rows[lane], lane.source.weight) for lane in added_lanes(s)] for s in sequences]
        width = max(1, *(len(pair) for pair in pairs))
        padded = [pair + [(0, 0.0)] * (width - len(pair)) for pair in pairs]
        values = np.array(padded, dtype=np.float64)
        places, weights = send([values[..., 0].astype(np.int64), values[..., 1]], self._device)
        return places, weights

    def _mask(
        self,
        scores: Tensor,
        logits: Tensor,
        rows: Rows,
        sequences: Seq[Sequence],
        allowed: Mapping[Sequence, Allowed],
    ) -> None:
        masked = [(i, s, s.request.plan.mask) for i, s in enumerate(sequences) if s.request.plan.mask is not None]
        if not masked:
            return
        kinds = [(mask.kind, mask.value) for _, _, mask in masked]

        def values(kind: str, off: float, dtype: type) -> Array:
            return np.array([value if name == kind else off for name, value in kinds], dtype=dtype)

        index, first, *bounds = send(
            [
                np.array([i for i, _, _ in masked]),
                np.array([rows[s.lanes[0]] for _, s, _ in masked]),
                values("top_k", 0, np.int64),
                values("top_p", 1.0, np.float32),
                values("relative", 0.0, np.float32),
            ],
            self._device,
        )
        base = logits.index_select(0, first).to(scores.dtype)
        base = restrict(base, {place: allowed[s] for place, (_, s, _) in enumerate(masked) if s in allowed})
        scores[index] = dispatch.rule_out_implausible(scores.index_select(0, index), base, *bounds)


def added_lanes(sequence: Sequence) -> list[Lane]:
    """The language models whose scores are added up; those of a routed sequence take turns instead."""
    if sequence.request.plan.routing is not None:
        return []
    return [lane for lane in sequence.lanes if not lane.scores and lane.source.weight != 0]


def worth(plan: Plan, found: CandidateValues) -> Tensor:
    """strength * sum_s weight_s f(V_s), [candidates]."""
    scorer = plan.scorer
    assert scorer is not None
    total: Tensor | None = None
    for lane, values in found.values.items():
        part = F.logsigmoid(values) if scorer.transform == "log_sigmoid" else values
        part = part * (scorer.strength * lane.source.weight)
        total = part if total is None else total + part
    assert total is not None, "a scorer comes with sources that have a head"
    return total
