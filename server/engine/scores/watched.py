"""What the monitors of a step say: the heads of the lanes that watch, on the state of the token that was drawn last."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.sampler import Draw


class WatchedStates:
    """Last hidden states of lanes that watch, as the forwards of a step give them: one each, and one more for each
    drafted token."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._parts: list[Tensor] = []

    def add(self, lanes: Seq[Lane], states: Tensor) -> None:
        """``states`` [lanes, hidden] of ``lanes``; one with drafted tokens stands there once for each of its tokens."""
        self._lanes.extend(lanes)
        self._parts.append(states)

    def tensors(self) -> list[Tensor]:
        """What the heads say, V = weight . h + bias in the head's dtype, without the bias; for ``said`` on the host."""
        values = []
        for lanes, states in self._by_width():
            # All heads in one batched dot product per width; biases are added on the host, in float64.
            weights = torch.stack([lane.head.weight for lane in lanes if lane.head is not None])
            values.append((states.to(weights.dtype) * weights).sum(dim=-1))
        return values

    def said(self, values: Seq[Tensor]) -> dict[Lane, list[float]]:
        """What the head of each lane says, token by token; ``values``: ``tensors``, read back."""
        every: dict[Lane, list[float]] = {}
        for (lanes, _), own in zip(self._by_width(), values, strict=True):
            for lane, value in zip(lanes, own.tolist(), strict=True):
                assert lane.head is not None
                every.setdefault(lane, []).append(value + lane.head.bias)
        return every

    def _by_width(self) -> list[tuple[list[Lane], Tensor]]:
        """The models of a family may have states of different widths."""
        # Parts lie in the order in which forwards gave them; ``start`` walks the lanes along with their rows.
        groups: dict[int, tuple[list[Lane], list[Tensor]]] = {}
        start = 0
        for part in self._parts:
            lanes, parts = groups.setdefault(part.shape[1], ([], []))
            lanes.extend(self._lanes[start : start + part.shape[0]])
            parts.append(part)
            start += part.shape[0]
        return [(lanes, torch.cat(parts)) for lanes, parts in groups.values()]


def with_watched(
    said: Mapping[Lane, Seq[float]], sequences: Seq[Sequence], draws: Seq[Draw], drafted: Mapping[Lane, int]
) -> list[Draw]:
    """``draws`` of ``sequences`` with what their monitors said of the token before; what they would say of a prompt,
    which nobody drew, is left out. ``drafted``: how many tokens lanes have in front of that one."""
    return [
        replace(
            draw,
            watched=tuple(said[lane][-1 - drafted.get(lane, 0)] for lane in sequence.lanes if lane.watches),
        )
        if said and sequence.output
        else draw
        for sequence, draw in zip(sequences, draws, strict=True)
    ]
