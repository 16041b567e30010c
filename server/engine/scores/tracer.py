"""What guidance did to each token, for sequences that are traced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from ladle.guidance.diagnostics.compatibility import BEST
from ladle.kernels import dispatch
from ladle.server.engine.device.transfers import send
from ladle.server.engine.requests.request import TokenTrace
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.candidates import CandidateValues
from ladle.server.engine.scores.tables import StepInputs


class Tracer:
    """The traces of one step, in two parts: ``tensors`` are to be read together with the tokens, of them ``traces``
    makes what users see."""

    def __init__(
        self, logits: Tensor, step: StepInputs, guided: Tensor, tokens: Tensor, traced: Mapping[int, Sequence]
    ) -> None:
        """``traced``: the traced sequences, at least one, by their place in the step; ``guided`` [traced, vocabulary]
        their combined scores, before a grammar rules tokens out: a trace reports guidance. ``tokens`` [sequences]."""
        self._turns = step.turns
        self._traced = traced
        self._valued = {i: step.values[s] for i, s in traced.items() if s in step.values}
        # The reference of a trace is the unsteered base; masks and candidates refer to the plan's first source.
        plain = [step.logits_rows[_plain(sequence).row] for sequence in traced.values()]
        leading = [step.logits_rows[sequence.lanes[0].row] for sequence in traced.values()]
        picked, own, firsts = send([np.array(part) for part in (list(traced), plain, leading)], guided.device)
        base = logits.index_select(0, own).to(guided.dtype)
        first = logits.index_select(0, firsts).to(guided.dtype)
        # Everything stays on the device until the tokens are read: six numbers per traced sequence, and the values of
        # its candidates.
        self.tensors = [
            dispatch.token_logprobs(base, tokens.index_select(0, picked)),
            dispatch.guidance_shift(base, guided),
            base.argmax(dim=-1) != guided.argmax(dim=-1),
            dispatch.entropy(guided),
            _outside(first, guided),
            _mass(first, guided, [self._valued.get(index) for index in traced]),
            *(values for valued in self._valued.values() for values in valued.values.values()),
        ]

    def traces(self, valued: Seq[Tensor], drawn_candidates: Mapping[Sequence, int | None]) -> dict[int, TokenTrace]:
        """The traces of the traced sequences, by their place in the step.

        ``valued``: ``tensors`` on the host; ``drawn_candidates``: which of its candidates a sequence drew.
        """
        # The order is that of ``tensors``: six columns per sequence, then the values of candidates, lane by lane.
        columns = zip(self._traced.items(), *(column.tolist() for column in valued[:6]), strict=True)
        rest = iter(valued[6:])
        values = {i: {lane.source.name: next(rest) for lane in own.values} for i, own in self._valued.items()}
        return {
            index: TokenTrace(
                base_logprob=logprob,
                shift=shift,
                argmax_changed=changed,
                entropy=entropy,
                outside=outside if _guided(sequence) else None,
                candidate_mass=mass if _chooses(sequence) else None,
                values=_values(values.get(index, {}), drawn_candidates.get(sequence)),
                router=self._turns[sequence].scores if sequence in self._turns else None,
            )
            for (index, sequence), logprob, shift, changed, entropy, outside, mass in columns
        }


def _plain(sequence: Sequence) -> Lane:
    """The lane of the plain base; a plan without one is the base itself."""
    return next((lane for lane in sequence.lanes if lane.source.plain), sequence.lanes[0])


def _guided(sequence: Sequence) -> bool:
    if sequence.request.plan.routing is not None:
        return False  # experts take turns: there is no base that one of them guides
    return sum(lane.source.weight != 0 for lane in sequence.lanes) > 1


def _chooses(sequence: Sequence) -> bool:
    plan = sequence.request.plan
    return plan.mask is not None or plan.scorer is not None


def _outside(first: Tensor, scores: Tensor) -> Tensor:
    """Whether the best token of the combined score is none of the first source's best."""
    # The rank of the best combined token among the first source's scores, without sorting: how many of these are
    # greater.
    best = scores.argmax(dim=-1, keepdim=True)
    rank = (first > first.gather(1, best)).sum(dim=-1)
    return rank >= BEST


def _mass(first: Tensor, scores: Tensor, values: Seq[CandidateValues | None]) -> Tensor:
    """The first source's probability of the candidates, or of the tokens that are not ruled out."""
    # With a mask: the mass of all that is left. With a scorer: that of its candidates alone.
    probabilities = torch.softmax(first, dim=-1)
    masses = probabilities.masked_fill(scores == -torch.inf, 0.0).sum(dim=-1)
    for index, candidates in enumerate(values):
        if candidates is not None:
            masses[index] = probabilities[index].index_select(0, candidates.tokens).sum()
    return masses


def _values(valued: Mapping[str, Tensor], place: int | None) -> dict[str, float] | None:
    if place is None:
        return None
    values = {name: float(own[place]) for name, own in valued.items()}
    return None if any(math.isnan(value) for value in values.values()) else values
