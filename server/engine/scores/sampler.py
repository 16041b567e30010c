"""From source logits to one token per sequence, and what is told about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.server.engine.device.transfers import Array, read, send
from ladle.server.engine.requests.request import TokenTrace
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.candidates import CandidateValues
from ladle.server.engine.scores.entropies import Entropies
from ladle.server.engine.scores.expert_router import ExpertTurn
from ladle.server.engine.scores.grammar_masks import Allowed, GrammarMasks
from ladle.server.engine.scores.least_length import LeastLength
from ladle.server.engine.scores.slot_tables import SlotTables
from ladle.server.engine.scores.tables import StepInputs, lay_out
from ladle.server.engine.scores.thought_masks import ThoughtMasks
from ladle.server.engine.scores.tracer import Tracer


@dataclass(frozen=True)
class Draw:
    """What one sequence got from a step.

    Attributes:
        token: its id.
        logprob: nats, of the combined score before bias, penalties and temperature, among what the grammar allows.
        top: (id, logprob) of the best alternatives, best first, as many as were asked for.
        trace: what guidance did, if the plan is traced.
        expert: who wrote the token, for plans that route; None for the router itself.
        candidate_index: of the token among its candidates, for plans that value some; None for one from outside them.
        ended: whether the grammar allows no more text.
        error: why there is no token, if the grammar cannot be followed.
        watched: what each of the plan's monitors with a value says of the token before it; empty where there is none.
        entropy: nats, of the distribution that ``logprob`` is of, where the sequence asks for it.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None
    expert: str | None = None
    candidate_index: int | None = None
    ended: bool = False
    error: str | None = None
    watched: tuple[float, ...] = ()
    entropy: float | None = None


class Sampler:
    """Draws tokens; their counts are kept only for sequences with penalties. ``slot_tables``: the
    parameters of all."""

    def __init__(
        self, max_sequences: int, device: torch.device, experts: int = 0, eos: frozenset[int] = frozenset()
    ) -> None:
        """``max_sequences``: at once; ``experts``: of the family's router; ``eos``: the ids that end a text."""
        dispatch.prepare_draws(device)
        self._device = device
        self._grammars = GrammarMasks(device)
        self._least = LeastLength(device, eos)
        self._thoughts = ThoughtMasks(device, self._least, eos)
        self.slot_tables = SlotTables(max_sequences, experts)
        self._counts: dict[int, tuple[Tensor, Tensor]] = {}

    def admit(self, sequence: Sequence, vocabulary: int) -> None:
        """Take over the parameters of ``sequence``, which holds a slot; its output so far counts for penalties."""
        slot, params = sequence.slot, sequence.request.sampling
        assert slot is not None
        self.slot_tables.admit(sequence)
        if sequence.draws:
            self._grammars.admit(sequence)
        self._counts.pop(slot, None)
        # Counted anew from the text so far: a sequence that was preempted has lost its slot, and with it its counts.
        if params.penalises:
            # Presence and frequency penalties count the output alone, the repetition penalty the prompt too.
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
        """Which tokens may come next of those of ``sequences`` that follow a grammar, or may not end yet (no request
        asks for both), or whose thought is long enough."""
        # Later ones win: a thought that must end decides against a grammar, whose turn comes after it.
        masks = {**self._grammars.allowed(sequences, vocabulary), **self._least.allowed(sequences, vocabulary)}
        return {**masks, **self._thoughts.allowed(sequences, vocabulary)}

    def draw(
        self,
        logits: Tensor,
        logits_rows: Array,
        sequences: Seq[Sequence],
        values: Mapping[Sequence, CandidateValues],
        turns: Mapping[Sequence, ExpertTurn],
    ) -> list[Draw]:
        """One token for each of ``sequences``, at least one.

        Args:
            logits: [rows, vocabulary] of all their lanes.
            logits_rows: [rows of the lane table] int64, the row of ``logits`` that each lane gave.
            values: of the candidates of those whose plan has a scorer.
            turns: of those that are routed.
        """
        # Host tables -> device tables -> one fused step: combine, mask, penalise, truncate, draw.
        allowed, counted = self.allowed(sequences, logits.shape[1]), self._penalties(sequences)
        step = StepInputs(logits_rows, values, turns, allowed, counted)
        host = self.slot_tables.tables(sequences, logits_rows)
        made = dispatch.fused_step(logits, lay_out(host, sequences, step, logits.dtype, self._device))
        # Of the sequences whose scores were written down some are traced, some ask for an entropy, some do both.
        seen = host.traced.tolist()
        entropies = Entropies(made.guided, [sequences[index] for index in seen], step.allowed)
        traced = {index: sequences[index] for index in seen if sequences[index].request.plan.trace}
        guided = made.guided if len(traced) == len(seen) else made.guided[[seen.index(index) for index in traced]]
        # Traces cost passes over the vocabulary, so they are made for the sequences that asked alone.
        tracer = Tracer(logits, step, guided, made.tokens, traced) if traced else None
        valued = [s for s in sequences if s in values] if values else []
        reported = [] if tracer is None else tracer.tensors
        # A single synchronisation: everything that the host needs of this step comes back in one copy.
        tensors = iter(
            read(
                *(made.tokens, made.logprobs, made.other_tokens, made.other_logprobs),
                *(values[s].tokens for s in valued),
                *entropies.tensors,
                *reported,
            )
        )
        tokens, logprobs, other_tokens, other_logprobs = (next(tensors).tolist() for _ in range(4))
        # Whether the drawn token was a candidate decides if its KV state can be kept (``keep_chosen``).
        known = {s: next(tensors).tolist() for s in valued}
        unsure = entropies.said([next(tensors) for _ in entropies.tensors])
        drawn = dict(zip(sequences, tokens, strict=True))
        candidate_indices = {s: ids.index(drawn[s]) if drawn[s] in ids else None for s, ids in known.items()}
        traces = {} if tracer is None else tracer.traces(list(tensors), candidate_indices)
        counts = [s.request.sampling.logprobs or 0 for s in sequences]
        tops = [
            tuple(zip(ids[:count], beside[:count], strict=True))
            for ids, beside, count in zip(other_tokens, other_logprobs, counts, strict=True)
        ]
        draws = self.follow(sequences, tokens, logprobs)
        return [
            replace(
                draw,
                top=tops[index],
                trace=traces.get(index),
                expert=turns[s].expert if s in turns else None,
                candidate_index=candidate_indices.get(s),
                entropy=unsure.get(s),
            )
            for index, (s, draw) in enumerate(zip(sequences, draws, strict=True))
        ]

    def foresee(
        self, logits: Tensor, logits_rows: Array, sequences: Seq[Sequence], guessed: Seq[Seq[int]]
    ) -> list[tuple[int, float]]:
        """What each of ``sequences``, at least one, would draw after the tokens that are ``guessed`` of it, from other
        logits than its plan's; and the token's probability before penalties, bias and temperature. Nothing is counted.

        Args:
            logits: [rows, vocabulary].
            logits_rows: [sequences] int64, the row of each.
        """
        host = self.slot_tables.foreseen(sequences, logits_rows, [len(behind) for behind in guessed])
        counted = self._penalties(sequences)
        for sequence, behind in zip(sequences, guessed, strict=True):
            if behind and sequence in counted:
                counts, seen = (part.clone() for part in counted[sequence])
                for token in behind:
                    counts[token] += 1
                    seen[token] = True
                counted[sequence] = counts, seen
        step = StepInputs(logits_rows, counted=counted)
        made = dispatch.fused_step(logits, lay_out(host, sequences, step, logits.dtype, self._device))
        tokens, logprobs = read(made.tokens, made.logprobs)
        return list(zip(tokens.tolist(), logprobs.exp().tolist(), strict=True))

    def follow(self, sequences: Seq[Sequence], tokens: Seq[int], logprobs: Seq[float]) -> list[Draw]:
        """Count drawn tokens for penalties and follow them in grammars."""
        for sequence, token in zip(sequences, tokens, strict=True):
            # Counts live on the device and grow by the drawn token, for the next step's penalties.
            counted = self._counts.get(sequence.slot) if sequence.slot is not None else None
            if counted is not None:
                counted[0][token] += 1
                counted[1][token] = True
        # Scores that are not numbers draw anything; the engine ends such a sequence.
        sound = [
            (s, token) for s, token, logprob in zip(sequences, tokens, logprobs, strict=True) if not math.isnan(logprob)
        ]
        self._grammars.advance([s for s, _ in sound], [token for _, token in sound])
        return [
            Draw(
                token,
                logprob,
                ended=not math.isnan(logprob) and self._grammars.ended(s),
                error=self._grammars.error(s),
            )
            for s, token, logprob in zip(sequences, tokens, logprobs, strict=True)
        ]

    def _penalties(self, sequences: Seq[Sequence]) -> dict[Sequence, tuple[Tensor, Tensor]]:
        return {s: self._counts[s.slot] for s in sequences if s.slot is not None and s.slot in self._counts}
