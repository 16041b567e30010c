"""What the monitors of a step say: the heads of the lanes that watch, on the state of the token that was drawn last."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from ladle.server.engine.device.transfers import read
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.sampler import Draw


class WatchedStates:
    """Last hidden states of lanes that watch, one each, as the forwards of a step give them."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._parts: list[Tensor] = []

    def add(self, lanes: Seq[Lane], states: Tensor) -> None:
        """``states`` [lanes, hidden] of ``lanes``."""
        self._lanes.extend(lanes)
        self._parts.append(states)

    def values(self) -> dict[Lane, float]:
        """What the head of each lane says, as it is: V = weight . h + bias, in the head's dtype."""
        said: dict[Lane, float] = {}
        # The models of a family may have states of different widths.
        for width in {part.shape[1] for part in self._parts}:
            lanes = [lane for lane in self._lanes if lane.head is not None and lane.head.weight.shape[0] == width]
            heads = [lane.head for lane in lanes if lane.head is not None]
            states = torch.cat([part for part in self._parts if part.shape[1] == width])
            weights = torch.stack([head.weight for head in heads])
            values = (states.to(weights.dtype) * weights).sum(dim=-1)
            (found,) = read(values)
            said |= {lane: v + lane.head.bias for lane, v in zip(lanes, found.tolist(), strict=True) if lane.head}
        return said


def with_watched(watched: WatchedStates, sequences: Seq[Sequence], draws: Seq[Draw]) -> list[Draw]:
    """``draws`` of ``sequences`` with what their monitors say of the token before; what they would say of a prompt,
    which nobody drew, is left out."""
    values = watched.values()
    if not values:
        return list(draws)
    return [
        replace(draw, watched=tuple(values[lane] for lane in sequence.lanes if lane.watches))
        if sequence.output
        else draw
        for sequence, draw in zip(sequences, draws, strict=True)
    ]
