"""Linear mode connectivity: does the loss rise on the straight line between two models?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from ladle.guidance.diagnostics.forwards import Forwards, State
from ladle.guidance.diagnostics.groups import Group, GroupMember
from ladle.merging.family.family import Family

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the first model."""
HIGH_NATS = 0.05
"""Nats a token above which two language models are not connected (our choice)."""
HIGH_SHARE = 0.25
"""Share of the ends' loss above which two explicit values are not connected (our choice)."""
SMALL_SHARE = 0.01
"""Share of the values' variance below which a rise matters to nobody, whatever the ends are: two values that are nearly
the same have almost no loss to compare with (our choice)."""


@dataclass(frozen=True)
class Barrier:
    """The barrier between two models.

    Attributes:
        kind: of their group.
        first, second: names.
        ends: loss of each; nats a token, or the head's units squared.
        height: the barrier in the same units, at least 0.
        at: the share of the first model where it is greatest; None where it is 0.
        variance: of the two values' mean over all prefixes; None for language models.
    """

    kind: str
    first: str
    second: str
    ends: tuple[float, float]
    height: float
    at: float | None
    variance: float | None = None

    @property
    def high(self) -> bool:
        """Whether the two are not connected."""
        if self.variance is None:
            return self.height > HIGH_NATS
        return self.height > max(HIGH_SHARE * max(self.ends), SMALL_SHARE * self.variance)

    def warning(self) -> str:
        return (
            f"{self.kind}: between {self.first} and {self.second} the loss rises by {self.height:.3g} over the line "
            f"between {self.ends[0]:.3g} and {self.ends[1]:.3g}; they are not linearly connected and merge badly"
        )


@dataclass(frozen=True)
class Pair:
    """Two models of a group, and the line between them.

    barrier = max_a [L(a th_1 + (1 - a) th_2) - (a L(th_1) + (1 - a) L(th_2))] over a = 0, 1/4, ..., 1: the usual
    definition; that MAGE (arXiv 2510.03782) checks it on values is from its abstract. The losses are our
    reconstruction, for the values' own training data are not part of a family. Language models: the mean negative
    log-likelihood of the base's greedy answers to neutral prompts. Explicit values: the mean over all prefixes of
    (V_theta - (V_1 + V_2) / 2)^2; a value that changes linearly along the line has no barrier in that, one that leaves
    the range of the ends has.
    """

    group: Group
    first: GroupMember
    second: GroupMember

    @classmethod
    def all(cls, group: Group) -> tuple[list[Pair], list[str]]:
        """Every pair that could be merged, and which could not."""
        pairs, skipped = [], []
        for first, second in combinations(group.members, 2):
            names = f"barrier between {first.name} and {second.name}"
            if first.state.model != second.state.model:
                skipped.append(f"{names}: they belong to different models")
            elif first.state.view != second.state.view:
                skipped.append(f"{names}: they have different system messages")
            else:
                pairs.append(cls(group, first, second))
        return pairs, skipped

    def line(self) -> list[State]:
        """The states along the grid, from the second model to the first."""
        return [self._at(share) for share in GRID]

    def states(self) -> list[tuple[State, bool]]:
        """What has to be computed: (state, whether hidden states are wanted)."""
        return [(state, self.group.explicit) for state in self.line()]

    def measure(self, forwards: Forwards, family: Family) -> Barrier:
        """The losses, summed in float64."""
        losses, variance = self._values(forwards, family) if self.group.explicit else self._likelihoods(forwards)
        start, end = losses[0], losses[-1]
        # L_2 + a (L_1 - L_2) rather than a L_1 + (1 - a) L_2: equal ends then give themselves, without rounding.
        rises = [loss - (start + share * (end - start)) for share, loss in zip(GRID, losses, strict=True)]
        height = max(rises)
        at = GRID[rises.index(height)] if height > 0 else None
        return Barrier(self.group.name, self.first.name, self.second.name, (end, start), height, at, variance)

    def _at(self, share: float) -> State:
        mix: dict[str, float] = {}
        for member, weight in ((self.first, share), (self.second, 1.0 - share)):
            for name, value in member.state.coefficients:
                mix[name] = mix.get(name, 0.0) + weight * value
        return State.of(self.first.state.model, mix, self.first.state.view)

    def _likelihoods(self, forwards: Forwards) -> tuple[list[float], None]:
        answer = forwards.answer[:, None]
        return [-float(forwards.logprobs(state).gather(1, answer).double().mean()) for state in self.line()], None

    def _values(self, forwards: Forwards, family: Family) -> tuple[list[float], float]:
        """The losses along the line, and the variance of what they aim at."""
        assert self.first.head is not None and self.second.head is not None
        heads = (family.heads[self.first.head], family.heads[self.second.head])
        hidden = [forwards.hidden(state).double() for state in self.line()]

        def value(states: Tensor, share: float) -> Tensor:
            ours, theirs = (states @ head.weight.double() + head.bias for head in heads)
            return theirs + share * (ours - theirs)

        # Trunk and head move along the line together; the target is the mean of what both ends say.
        along = [value(states, share) for states, share in zip(hidden, GRID, strict=True)]
        target = (along[0] + along[-1]) / 2
        losses = [float((values - target).square().mean()) for values in along]
        return losses, float(target.var(unbiased=False))
