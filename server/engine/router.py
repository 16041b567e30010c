"""Which expert writes the next token: the head of the family's router on the last hidden state of a router's lane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from ladle.guidance.plan import Routing
from ladle.kernels import dispatch
from ladle.merging.router_head import RouterHead
from ladle.server.engine.sequence import Lane, Sequence


@dataclass(frozen=True)
class Turn:
    """Who writes one token.

    lanes: of the experts that take part, the first one leading; none where the router writes by itself (Co-LLM).
    shares: of their probabilities, [lanes].
    scores: what the head says, by expert.
    speaker: the sequence's, once this token is drawn.
    """

    lanes: tuple[Lane, ...]
    shares: Tensor
    scores: Mapping[str, float]
    speaker: tuple[int, int]

    @property
    def expert(self) -> str | None:
        """The leading expert's name; None for the router itself."""
        return self.lanes[0].source.name if self.lanes else None


class Router:
    """Takes turns for all routed sequences of a step. The last expert and how long it has spoken are the sequence's,
    so that a preempted one goes on as it would have."""

    def __init__(self, head: RouterHead, dtype: torch.dtype, device: torch.device) -> None:
        self._weight = head.weight.to(device, dtype)
        self._bias = head.bias.to(device, dtype)
        self._defer = None if head.defer is None else head.defer.to(device, dtype)
        self._defer_bias = head.defer_bias

    def choose(self, sequences: Seq[Sequence], states: Mapping[Lane, Tensor]) -> dict[Sequence, Turn]:
        """The turns of the routed ones of ``sequences``; ``states`` [hidden] of their routers' lanes. Asking changes
        nothing: a turn counts once its token is drawn (``Turn.speaker``).

        Scores that are not finite give a turn whose shares are NaN, which makes the sequence's scores NaN.
        """
        routed = [(s, s.request.plan.routing) for s in sequences if s.request.plan.routing is not None]
        if not routed:
            return {}
        hidden = torch.stack([states[s.lanes[routing.source]] for s, routing in routed]).to(self._weight.dtype)
        # A sum of products and no matrix product: what shares the step does not change a row.
        scores = (hidden[:, None] * self._weight).sum(dim=-1) + self._bias
        device = scores.device
        history = torch.tensor([[*s.speaker, routing.stay] for s, routing in routed], device=device)
        chosen = dispatch.route_tokens(scores, history[:, 0], history[:, 1], history[:, 2]).tolist()
        deferred = self._deferred(hidden, [routing for _, routing in routed])
        rows = scores.tolist()  # of all sequences at once: each row by itself would wait for a GPU each time
        turns = {}
        for index, (sequence, routing) in enumerate(routed):
            said = dict(zip(_names(sequence, routing), rows[index], strict=True))
            if not deferred[index]:
                turns[sequence] = Turn((), scores.new_ones(0), said, sequence.speaker)
                continue
            experts, shares = torch.tensor([chosen[index]]), scores.new_ones(1)
            if routing.top > 1:
                mixed, parts = dispatch.mix_experts(scores[index : index + 1], routing.top)
                experts, shares = mixed[0], parts[0]
            if not all(map(math.isfinite, rows[index])):
                shares = torch.full_like(shares, torch.nan)
            lanes = tuple(sequence.lanes[routing.experts[expert]] for expert in experts.tolist())
            last, stayed = sequence.speaker
            leading = int(experts[0])
            turns[sequence] = Turn(lanes, shares, said, (leading, stayed + 1 if leading == last else 1))
        return turns

    def _deferred(self, hidden: Tensor, routings: Seq[Routing]) -> list[bool]:
        """Whether the experts are asked: always, but for plans with a threshold only where sigmoid(d) is above it."""
        if self._defer is None or all(routing.threshold is None for routing in routings):
            return [True] * len(routings)
        logit = (hidden * self._defer).sum(dim=-1) + self._defer_bias
        chances = torch.sigmoid(logit).tolist()
        return [
            routing.threshold is None or chance > routing.threshold
            for routing, chance in zip(routings, chances, strict=True)
        ]


def _names(sequence: Sequence, routing: Routing) -> list[str]:
    return [sequence.lanes[index].source.name for index in routing.experts]


def combine_turns(logits: Tensor, rows: Mapping[Lane, int], turns: Mapping[Sequence, Turn]) -> dict[Sequence, Tensor]:
    """Scores [vocabulary] of the routed sequences from ``logits`` [rows, vocabulary] (see ``Routing``)."""
    scores = {}
    for sequence, turn in turns.items():
        plan = sequence.request.plan
        routing = plan.routing
        assert routing is not None
        own = logits[rows[sequence.lanes[routing.source]]][None]
        if not turn.lanes:
            scores[sequence] = own[0].to(torch.promote_types(own.dtype, torch.float32))
            continue
        spoken = logits[[rows[lane] for lane in turn.lanes]][None]
        complement, weight = (
            own.new_tensor([value], dtype=torch.float64) for value in (routing.complement, routing.weight)
        )
        combined = dispatch.combine_routed(
            own,
            spoken,
            turn.shares[None],
            complement,
            weight,
            torch.tensor([plan.normalize == "sum"], device=own.device),
        )[0]
        scores[sequence] = combined if bool(torch.isfinite(turn.shares).all()) else torch.full_like(combined, torch.nan)
    return scores
