"""From source logits to one token a sequence: combine, penalise, draw, report. The parameters lie side by side by
slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.kernels import step_tables as columns
from ladle.server.engine.device.transfers import read, send, send_one
from ladle.server.engine.requests.request import TokenTrace
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.candidates import CandidateValues
from ladle.server.engine.scores.combiner import Combiner, Rows
from ladle.server.engine.scores.grammar_masks import Allowed, GrammarMasks, restrict
from ladle.server.engine.scores.router import Turn
from ladle.server.engine.scores.slot_tables import SlotTables
from ladle.server.engine.scores.tables import Step, lay_out
from ladle.server.engine.scores.tracer import Tracer


@dataclass(frozen=True)
class Draw:
    """What one sequence got from a step; logprobs in nats of the combined score before bias, penalties and
    temperature, among what its grammar allows. ``expert``: who wrote the token, for plans that route. ``place``: of the
    token among its candidates, for plans that value some. ``ended``: its grammar allows no more text. ``error``: why
    there is no token, where its grammar cannot be followed.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None
    expert: str | None = None
    place: int | None = None
    ended: bool = False
    error: str | None = None


@dataclass(frozen=True)
class _Made:
    """``tokens`` and ``logprobs`` [sequences]; ``guided`` [sequences, vocabulary], combined scores for the trace;
    ``listed``: the sequences, by place, of which ``others`` are the best tokens and their logprobs [listed, most]."""

    tokens: Tensor
    logprobs: Tensor
    guided: Tensor
    listed: Seq[int] = ()
    others: tuple[Tensor, ...] = ()


class Sampler:
    """Draws tokens; their counts are kept only for sequences with penalties. ``slots``: the parameters of all."""

    def __init__(self, slots: int, device: torch.device, experts: int = 0) -> None:
        """``slots``: sequences at once; ``experts``: of the family's router."""
        dispatch.prepare_draws(device)
        self._device = device
        self._combiner = Combiner(device)
        self._grammars = GrammarMasks(device)
        self.slots = SlotTables(slots, experts)
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def admit(self, sequence: Sequence, vocabulary: int) -> None:
        """Take over the parameters of ``sequence``, which holds a slot; its output so far counts for penalties."""
        slot, params = sequence.slot, sequence.request.sampling
        assert slot is not None
        self.slots.admit(sequence)
        if sequence.draws:
            self._grammars.admit(sequence)
        self._counts.pop(slot, None)
        if params.penalises:
            counts = torch.zeros(vocabulary, dtype=torch.int32, device=self._device)
            seen = torch.zeros(vocabulary, dtype=torch.bool, device=self._device)
            output, prompt = send(
                [np.array(part, dtype=np.int64) for part in (sequence.output, sequence.request.prompt)], self._device
            )
            counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))
            seen[prompt] = True
            seen[output] = True
            self._counts[slot] = (counts, seen)

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Allowed]:
        """Which tokens may come next of those of ``sequences`` that follow a grammar."""
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
        allowed = self.allowed(sequences, logits.shape[1])
        counted = self._penalties(sequences)
        step = Step(rows, values, turns, allowed, counted, *self.slots.columns_of(sequences))
        # A budget is found by trial, for which the fused step has no place.
        fused = dispatch.fuses(logits) and all(s.request.plan.kl_budget is None for s in sequences)
        made = (self._draw_fused if fused else self._draw_stepwise)(logits, sequences, step)
        # A trace tells what guidance did; that a grammar rules most tokens out is no news.
        tracer = Tracer(logits, rows, made.guided, made.tokens, sequences, values, turns)
        valued = [s for s in sequences if s in values]
        found = iter(
            read(made.tokens, made.logprobs, *made.others, *(values[s].tokens for s in valued), *tracer.tensors)
        )
        tokens, logprobs = next(found).tolist(), next(found).tolist()
        top = {}
        if made.listed:
            ids, values_of = next(found).tolist(), next(found).tolist()
            for index, own, beside in zip(made.listed, ids, values_of, strict=True):
                count = sequences[index].request.sampling.logprobs or 0
                top[index] = tuple(zip(own[:count], beside[:count], strict=True))
        known = {s: next(found).tolist() for s in valued}
        drawn = dict(zip(sequences, tokens, strict=True))
        places = {s: ids.index(drawn[s]) if drawn[s] in ids else None for s, ids in known.items()}
        traces = tracer.traces(list(found), places)
        draws = self.follow(sequences, tokens, logprobs)
        return [
            replace(
                draw,
                top=top.get(index, ()),
                trace=traces.get(index),
                expert=turns[s].expert if s in turns else None,
                place=places.get(s),
            )
            for index, (s, draw) in enumerate(zip(sequences, draws, strict=True))
        ]

    def follow(self, sequences: Seq[Sequence], tokens: Seq[int], logprobs: Seq[float]) -> list[Draw]:
        """Count drawn tokens for penalties and follow them in grammars."""
        for sequence, token in zip(sequences, tokens, strict=True):
            counted = self._counts.get(sequence.slot) if sequence.slot is not None else None
            if counted is not None:
                counted[0][token] += 1
                counted[1][token] = True
        return [
            Draw(
                token,
                logprob,
                # Scores that are not numbers draw anything; the engine ends such a sequence.
                ended=not math.isnan(logprob) and self._grammars.advance(s, token),
                error=self._grammars.error(s),
            )
            for s, token, logprob in zip(sequences, tokens, logprobs, strict=True)
        ]

    def _draw_fused(self, logits: Tensor, sequences: Seq[Sequence], step: Step) -> _Made:
        """All in one; the combined scores are written down only for a trace."""
        made = dispatch.fused_step(logits, lay_out(sequences, step, self._device))
        guided = made.logprobs[:, None]
        if any(sequence.request.plan.trace for sequence in sequences):
            guided = self._combiner.combine(logits, step.rows, sequences, step.values, step.turns, step.allowed)
        if not any(sequence.request.sampling.logprobs for sequence in sequences):
            return _Made(made.tokens, made.logprobs, guided)
        every = list(range(len(sequences)))
        return _Made(made.tokens, made.logprobs, guided, every, (made.other_tokens, made.other_logprobs))

    def _draw_stepwise(self, logits: Tensor, sequences: Seq[Sequence], step: Step) -> _Made:
        """One operation after the other, each on all sequences."""
        guided = self._combiner.combine(logits, step.rows, sequences, step.values, step.turns, step.allowed)
        masks = {place: step.allowed[s] for place, s in enumerate(sequences) if s in step.allowed}
        final = restrict(guided, masks)
        temperature, top_p, min_p = (step.numbers[:, c] for c in (columns.TEMPERATURE, columns.TOP_P, columns.MIN_P))
        top_k, keys = step.choices[:, columns.TOP_K].astype(np.int64), step.choices[:, columns.KEYS]
        options = send([temperature, top_k, top_p, min_p, keys], self._device)
        tokens = dispatch.sample(self._penalised(final, sequences, step.counted), *options)
        logprobs = dispatch.token_logprobs(final, tokens)
        wanted = {i: s.request.sampling.logprobs for i, s in enumerate(sequences) if s.request.sampling.logprobs}
        if not wanted:
            return _Made(tokens, logprobs, guided)
        part = final.index_select(0, send_one(list(wanted), self._device, np.int64))
        best, ids = dispatch.best_logprobs(part, max(count or 0 for count in wanted.values()))
        return _Made(tokens, logprobs, guided, list(wanted), (ids, best))

    def _penalties(self, sequences: Seq[Sequence]) -> dict[Sequence, tuple[Tensor, Tensor]]:
        return {s: self._counts[s.slot] for s in sequences if s.slot is not None and s.slot in self._counts}

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
            held = [penalties[s] for _, s in counted]
            options = [s.request.sampling for _, s in counted]
            rows, *factors = send(
                [
                    np.array([i for i, _ in counted]),
                    np.array([o.repetition_penalty for o in options]),
                    np.array([o.presence_penalty for o in options]),
                    np.array([o.frequency_penalty for o in options]),
                ],
                self._device,
            )
            scores[rows] = dispatch.apply_penalties(
                scores[rows],
                torch.stack([counts for counts, _ in held]),
                torch.stack([seen for _, seen in held]),
                *(factor.to(scores.dtype) for factor in factors),
            )
        for index, params in biased:
            pairs = np.array(params.logit_bias, dtype=np.float64)
            ids, bias = send([pairs[:, 0].astype(np.int64), pairs[:, 1]], self._device)
            scores[index, ids] += bias.to(scores.dtype)
        return scores
