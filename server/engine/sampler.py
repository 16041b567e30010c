"""From source logits to one token a sequence: combine, penalise, draw, report. The parameters lie side by side by
slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.server.engine.candidates import CandidateValues
from ladle.server.engine.combiner import Combiner, Rows
from ladle.server.engine.grammar_masks import GrammarMasks, restrict
from ladle.server.engine.plan_tables import Step, lay_out
from ladle.server.engine.request import TokenTrace
from ladle.server.engine.router import Turn
from ladle.server.engine.sequence import Sequence
from ladle.server.engine.tracer import trace_tokens

_MASK = (1 << 64) - 1
_Drawn = tuple[Tensor, list[float], dict[int, tuple[tuple[int, float], ...]], Tensor]
"""Tokens [sequences], their logprobs, the alternatives of those that want them, combined scores for the trace."""


@dataclass(frozen=True)
class Draw:
    """What one sequence got from a step; logprobs in nats of the combined score before bias, penalties and
    temperature, among what its grammar allows. ``expert``: who wrote the token, for plans that route. ``ended``: its
    grammar allows no more text. ``error``: why there is no token, where its grammar cannot be followed.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: TokenTrace | None
    expert: str | None = None
    ended: bool = False
    error: str | None = None


def draw_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Two int32 words [n, 2] a (seed, position), by two rounds of splitmix64: nothing but these decides a draw."""
    with np.errstate(over="ignore"):
        x = seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for extra in (np.uint64(0), positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)):
            x = x + extra
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x.view(np.int32).reshape(-1, 2)


class Sampler:
    """Parameters of up to ``slots`` sequences; token counts are kept only for sequences with penalties."""

    def __init__(self, slots: int, device: torch.device) -> None:
        dispatch.prepare_draws(device)
        self._device = device
        self._combiner = Combiner(device)
        self._grammars = GrammarMasks(device)
        self._temperature = np.zeros(slots, dtype=np.float32)
        self._top_p = np.ones(slots, dtype=np.float32)
        self._min_p = np.zeros(slots, dtype=np.float32)
        self._top_k = np.zeros(slots, dtype=np.int64)
        self._seed = np.zeros(slots, dtype=np.uint64)
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def admit(self, sequence: Sequence, vocabulary: int) -> None:
        """Take over the parameters of ``sequence``, which holds a slot; its output so far counts for penalties."""
        slot, params = sequence.slot, sequence.request.sampling
        assert slot is not None
        self._temperature[slot] = params.temperature
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._top_k[slot] = params.top_k
        self._seed[slot] = params.seed & _MASK
        if sequence.draws:
            self._grammars.admit(sequence)
        self._counts.pop(slot, None)
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
            counts = torch.zeros(vocabulary, dtype=torch.int32, device=self._device)
            seen = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
            output = torch.tensor(sequence.output, dtype=torch.int64, device=self._device)
            counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
            seen[torch.tensor(sequence.request.prompt, dtype=torch.int64, device=self._device)] = True
            seen[output] = True
            self._counts[slot] = (counts, seen)

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Tensor]:
        """Which tokens may come next, [vocabulary] bool, of those of ``sequences`` that follow a grammar."""
        return self._grammars.allowed(sequences, vocabulary)

    def draw(
        self,
        logits: Tensor,
        rows: Rows,
        sequences: Seq[Sequence],
        values: Mapping[Sequence, CandidateValues],
        turns: Mapping[Sequence, Turn],
    ) -> list[Draw]:
        """One token for each of ``sequences``; ``logits`` [rows, vocabulary] of all their lanes, ``values`` of the
        candidates of those whose plan has a scorer, ``turns`` of those that are routed."""
        slots = _slots(sequences)
        positions = np.fromiter((len(s.output) for s in sequences), dtype=np.int64, count=len(sequences))
        allowed = self.allowed(sequences, logits.shape[1])
        keys = draw_keys(self._seed[slots], positions)
        step = Step(rows, values, turns, allowed, self._penalties(sequences), keys)
        # A budget is found by trial, for which the fused step has no place.
        fused = dispatch.fuses(logits) and all(s.request.plan.kl_budget is None for s in sequences)
        way = self._draw_fused if fused else self._draw_stepwise
        tokens, logprobs, top, guided = way(logits, sequences, step)
        # A trace tells what guidance did; that a grammar rules most tokens out is no news.
        traces = trace_tokens(logits, rows, guided, tokens, sequences, values, turns)
        drawn = tokens.tolist()
        for sequence, token in zip(sequences, drawn, strict=True):
            counted = self._counts.get(sequence.slot) if sequence.slot is not None else None
            if counted is not None:
                counted[0][token] += 1
                counted[1][token] = True
        return [
            Draw(
                token,
                logprob,
                top.get(index, ()),
                traces.get(index),
                turns[s].expert if s in turns else None,
                # Scores that are not numbers draw anything; the engine ends such a sequence.
                not math.isnan(logprob) and self._grammars.advance(s, token),
                self._grammars.error(s),
            )
            for index, (s, token, logprob) in enumerate(zip(sequences, drawn, logprobs, strict=True))
        ]

    def _draw_fused(self, logits: Tensor, sequences: Seq[Sequence], step: Step) -> _Drawn:
        """All in one; the combined scores are written down only for a trace."""
        made = dispatch.fused_step(logits, lay_out(sequences, step, self._device))
        guided = made.logprobs[:, None]
        if any(sequence.request.plan.trace for sequence in sequences):
            guided = self._combiner.combine(logits, step.rows, sequences, step.values, step.turns, step.allowed)
        wanted = {i: s.request.sampling.logprobs for i, s in enumerate(sequences) if s.request.sampling.logprobs}
        others = list(zip(made.other_tokens.tolist(), made.other_logprobs.tolist(), strict=True)) if wanted else []
        top = {i: tuple(zip(*(part[:count] for part in others[i]), strict=True)) for i, count in wanted.items()}
        return made.tokens, made.logprobs.tolist(), top, guided

    def _draw_stepwise(self, logits: Tensor, sequences: Seq[Sequence], step: Step) -> _Drawn:
        """One operation after the other, each on all sequences."""
        slots = _slots(sequences)
        guided = self._combiner.combine(logits, step.rows, sequences, step.values, step.turns, step.allowed)
        masks = {place: step.allowed[s] for place, s in enumerate(sequences) if s in step.allowed}
        final = restrict(guided, masks)
        tokens = dispatch.sample(
            self._penalised(final, sequences, step.counted),
            self._tensor(self._temperature[slots]),
            self._tensor(self._top_k[slots]),
            self._tensor(self._top_p[slots]),
            self._tensor(self._min_p[slots]),
            self._tensor(step.keys),
        )
        logprobs = dispatch.token_logprobs(final, tokens).tolist()
        return tokens, logprobs, self._alternatives(final, sequences), guided

    def _penalties(self, sequences: Seq[Sequence]) -> dict[Sequence, tuple[Tensor, Tensor]]:
        return {s: self._counts[s.slot] for s in sequences if s.slot is not None and s.slot in self._counts}

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _penalised(
        self, final: Tensor, sequences: Seq[Sequence], penalties: Mapping[Sequence, tuple[Tensor, Tensor]]
    ) -> Tensor:
        """``final`` with logit bias and penalties; a copy only where there are any, because logprobs are of
        ``final``.
        """
        biased = [(i, s.request.sampling) for i, s in enumerate(sequences) if s.request.sampling.logit_bias]
        counted = [(i, s) for i, s in enumerate(sequences) if s in penalties]
        if not biased and not counted:
            return final
        scores = final.clone()
        if counted:
            rows = torch.tensor([i for i, _ in counted], device=self._device)
            held = [penalties[s] for _, s in counted]
            options = [s.request.sampling for _, s in counted]

            def column(values: list[float]) -> Tensor:
                return torch.tensor(values, dtype=scores.dtype, device=self._device)

            scores[rows] = dispatch.apply_penalties(
                scores[rows],
                torch.stack([counts for counts, _ in held]),
                torch.stack([seen for _, seen in held]),
                column([o.repetition_penalty for o in options]),
                column([o.presence_penalty for o in options]),
                column([o.frequency_penalty for o in options]),
            )
        for index, params in biased:
            ids = torch.tensor([token for token, _ in params.logit_bias], device=self._device)
            bias = torch.tensor([value for _, value in params.logit_bias], dtype=scores.dtype, device=self._device)
            scores[index, ids] += bias
        return scores

    def _alternatives(self, final: Tensor, sequences: Seq[Sequence]) -> dict[int, tuple[tuple[int, float], ...]]:
        wanted = [(i, s.request.sampling.logprobs) for i, s in enumerate(sequences) if s.request.sampling.logprobs]
        if not wanted:
            return {}
        rows = torch.tensor([i for i, _ in wanted], device=self._device)
        part = final.index_select(0, rows)
        values, ids = dispatch.best_logprobs(part, max(count or 0 for _, count in wanted))
        return {
            index: tuple(zip(row_ids[:count], row_values[:count], strict=True))
            for (index, count), row_ids, row_values in zip(wanted, ids.tolist(), values.tolist(), strict=True)
        }


def _slots(sequences: Seq[Sequence]) -> np.ndarray:
    return np.fromiter((s.slot for s in sequences), dtype=np.int64, count=len(sequences))
