"""What guidance did to each token, for sequences that are traced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from ladle.guidance.diagnostics.compatibility import BEST
from ladle.kernels import dispatch
from ladle.server.engine.candidates import CandidateValues
from ladle.server.engine.combiner import Rows
from ladle.server.engine.request import TokenTrace
from ladle.server.engine.router import Turn
from ladle.server.engine.sequence import Lane, Sequence


def trace_tokens(
    logits: Tensor,
    rows: Rows,
    final: Tensor,
    tokens: Tensor,
    sequences: Seq[Sequence],
    values: Mapping[Sequence, CandidateValues],
    turns: Mapping[Sequence, Turn],
) -> dict[int, TokenTrace]:
    """The traces of the traced ones of ``sequences``, by their place.

    ``final`` [sequences, vocabulary] combined scores, ``tokens`` [sequences] what was drawn.
    """
    traced = [index for index, sequence in enumerate(sequences) if sequence.request.plan.trace]
    if not traced:
        return {}
    picked = torch.tensor(traced, device=final.device)
    base = _rows(logits, [rows[_plain(sequences[index])] for index in traced]).to(final.dtype)
    first = _rows(logits, [rows[sequences[index].lanes[0]] for index in traced]).to(final.dtype)
    scores = final.index_select(0, picked)
    drawn = tokens.index_select(0, picked)
    columns = zip(
        traced,
        drawn.tolist(),
        dispatch.token_logprobs(base, drawn).tolist(),
        dispatch.guidance_shift(base, scores).tolist(),
        (base.argmax(dim=-1) != scores.argmax(dim=-1)).tolist(),
        _outside(first, scores),
        _mass(first, scores, [values.get(sequences[index]) for index in traced]),
        strict=True,
    )
    return {
        index: TokenTrace(
            base_logprob=logprob,
            shift=shift,
            argmax_changed=changed,
            outside=outside if _guided(sequences[index]) else None,
            candidate_mass=mass if _chooses(sequences[index]) else None,
            values=_values(values.get(sequences[index]), token),
            router=turns[sequences[index]].scores if sequences[index] in turns else None,
        )
        for index, token, logprob, shift, changed, outside, mass in columns
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


def _rows(logits: Tensor, rows: Seq[int]) -> Tensor:
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _outside(first: Tensor, scores: Tensor) -> list[bool]:
    """Whether the best token of the combined score is none of the first source's best."""
    best = scores.argmax(dim=-1, keepdim=True)
    rank = (first > first.gather(1, best)).sum(dim=-1)
    return [place >= BEST for place in rank.tolist()]


def _mass(first: Tensor, scores: Tensor, found: Seq[CandidateValues | None]) -> list[float]:
    """The first source's probability of the candidates, or of the tokens that are not ruled out."""
    probabilities = torch.softmax(first, dim=-1)
    masses = probabilities.masked_fill(scores == -torch.inf, 0.0).sum(dim=-1).tolist()
    return [
        mass if candidates is None else float(probabilities[index].index_select(0, candidates.tokens).sum())
        for index, (mass, candidates) in enumerate(zip(masses, found, strict=True))
    ]


def _values(found: CandidateValues | None, token: int) -> dict[str, float] | None:
    place = None if found is None else found.place(token)
    if found is None or place is None:
        return None
    values = {lane.source.name: float(values[place]) for lane, values in found.values.items()}
    return None if any(math.isnan(value) for value in values.values()) else values
