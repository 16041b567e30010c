"""Which expert writes the next token: the head of the family's router on the last hidden state of a router's lane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladle.guidance.plan import Routing
from ladle.kernels import dispatch
from ladle.merging.members.router_head import RouterHead
from ladle.server.engine.device.transfers import read, send_one
from ladle.server.engine.requests.sequence import Lane, Sequence


@dataclass(frozen=True)
class ExpertTurn:
    """Who writes one token.

    Attributes:
        lanes: of the experts that take part, the first one leading; none where the router writes by itself (Co-LLM).
        shares: of their probabilities.
        scores: what the head says, by expert.
        speaker: the sequence's, once this token is drawn.
    """

    lanes: tuple[Lane, ...]
    shares: tuple[float, ...]
    scores: Mapping[str, float]
    speaker: tuple[int, int]

    @property
    def expert(self) -> str | None:
        """The leading expert's name; None for the router itself."""
        return self.lanes[0].source.name if self.lanes else None


class ExpertRouter:
    """Takes turns for all routed sequences of a step. The last expert and how long it has spoken are the sequence's,
    so that a preempted one goes on as it would have."""

    def __init__(self, head: RouterHead, dtype: torch.dtype, device: torch.device) -> None:
        self._weight = head.weight.to(device, dtype)
        self._bias = head.bias.to(device, dtype)
        self._defer = None if head.defer is None else head.defer.to(device, dtype)
        self._defer_bias = head.defer_bias
        self.experts = len(self._weight)

    def choose(self, sequences: Seq[Sequence], state: Callable[[Lane], Tensor]) -> dict[Sequence, ExpertTurn]:
        """The turns of ``sequences``, at least one, which all route; ``state`` gives [hidden] of a router's lane.

        Asking changes nothing: a turn counts once its token is drawn (``ExpertTurn.speaker``).

        Scores that are not finite give a turn whose shares are NaN, which makes the sequence's scores NaN.
        """
        # [sequences, experts] scores, from the router lanes' states stacked as one batch.
        routed = [(s, s.request.plan.routing) for s in sequences if s.request.plan.routing is not None]
        scores, likely = self.judge(torch.stack([state(s.lanes[routing.source]) for s, routing in routed]))
        history = send_one([[*s.speaker, routing.stay] for s, routing in routed], scores.device, np.int64)
        chosen = dispatch.route_tokens(scores, history[:, 0], history[:, 1], history[:, 2])
        # The hard turn (argmax with hysteresis) is one kernel for all; mixtures of several experts are made one by one.
        mixed = {
            index: dispatch.mix_experts(scores[index : index + 1], routing.top)
            for index, (_, routing) in enumerate(routed)
            if routing.top > 1
        }
        # The next forward depends on the chosen experts, so that a step which routes here waits twice.
        arrays = read(chosen, scores, likely, *(part[0] for parts in mixed.values() for part in parts))
        leading, said, chances, *mixes = (part.tolist() for part in arrays)
        soft = dict(zip(mixed, zip(mixes[::2], mixes[1::2], strict=True), strict=True))
        turns = {}
        for index, (sequence, routing) in enumerate(routed):
            # One routed sequence after the other on the host: whether experts are asked, which, with what shares, and
            # who spoke last.
            row = said[index]
            named = dict(zip(_names(sequence, routing), row, strict=True))
            # Experts are always asked, but for a plan with a threshold only where sigmoid(d) is above it.
            asked = self._defer is None or routing.threshold is None or chances[index] > routing.threshold
            if not asked:
                turns[sequence] = ExpertTurn((), (), named, sequence.speaker)
                continue
            experts, shares = soft.get(index, ([leading[index]], [1.0]))
            if not all(map(math.isfinite, row)):
                shares = [math.nan] * len(shares)
            lanes = tuple(sequence.lanes[routing.experts[expert]] for expert in experts)
            # Hysteresis: the run length of the leading expert decides when the head may switch again (``stay``).
            last, stayed = sequence.speaker
            speaker = (experts[0], stayed + 1 if experts[0] == last else 1)
            turns[sequence] = ExpertTurn(lanes, tuple(shares), named, speaker)
        return turns

    def judge(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [n, experts] from last hidden ``states`` [n, hidden] of routers, and the chance [n] that the next
        token is an expert's; 1 for a router that does not say."""
        hidden = states.to(self._weight.dtype)
        # Sums of products and no matrix products: what shares the step does not change a row.
        scores = (hidden[:, None] * self._weight).sum(dim=-1) + self._bias
        if self._defer is None:
            return scores, torch.ones_like(scores[:, 0])
        return scores, torch.sigmoid((hidden * self._defer).sum(dim=-1) + self._defer_bias)


def _names(sequence: Sequence, routing: Routing) -> list[str]:
    return [sequence.lanes[index].source.name for index in routing.experts]
