"""Merged against ensembled: how far one model of merged weights is from the weighed sum of the models' answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ladle.guidance.diagnostics.forwards import Forwards, State
from ladle.guidance.diagnostics.groups import Group, state_of, untuned
from ladle.guidance.values import Guide
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

BEST = 20
"""Log-ratios are compared where guidance decides: at so many of the base's best tokens of each position."""
FAR = 0.25
"""A mean difference above this share of the ensemble's spread changes what the values prefer (our choice)."""
NOISE = 1e-5
"""What float32 may lose in a log-ratio or a value; less is no difference."""


@dataclass(frozen=True)
class Difference:
    """|merged - ensembled| over all prefixes, in nats for log-ratios, in the head's units for values.

    Attributes:
        kind: of the group.
        preference: in words.
        mean, largest: of the absolute difference.
        spread: standard deviation of the ensembled quantity.
    """

    kind: str
    preference: str
    mean: float
    largest: float
    spread: float

    @property
    def relative(self) -> float | None:
        """The mean difference as a share of the spread; None where the ensemble says the same everywhere."""
        return self.mean / self.spread if self.spread else None

    @property
    def far(self) -> bool:
        """Whether merging says something else than the ensemble."""
        return self.mean > max(FAR * self.spread, NOISE)

    def warning(self) -> str:
        return (
            f"{self.kind}, {self.preference}: merged and ensembled differ by {self.mean:.3g} where the ensemble varies "
            f"by {self.spread:.3g}; `combine: ensemble` is the safer choice"
        )


@dataclass(frozen=True)
class Comparison:
    """A preference for which a group is merged and ensembled.

    theta = theta_0 + sum_i w_i (theta_i - theta_0), scalar heads included, against sum_i w_i f_i. That MAGE (arXiv
    2510.03782) relates the two is from its abstract; what is measured here and where is our reconstruction. f is the
    log-ratio lp_i(z) - lp_ref(z) at the base's 20 best tokens z of every position of its own answers (lp_i where there
    is no reference), or the value V_i of every prefix of them.
    """

    group: Group
    preference: Preference
    words: str
    merged: Guide
    parts: tuple[Guide, ...]

    @classmethod
    def of(cls, group: Group, preference: Preference, words: str) -> Comparison | None:
        """None where there is nothing to compare: a single model, or models that cannot be merged."""
        if group.parts is None:
            return None
        whole, parts = group.whole(preference), tuple(group.parts(preference))
        return cls(group, preference, words, whole[0], parts) if len(whole) == 1 and len(parts) > 1 else None

    def states(self) -> list[tuple[State, bool]]:
        """What has to be computed: (state, whether hidden states are wanted)."""
        if self.group.explicit:
            return [(state_of(guide), True) for guide in (self.merged, *self.parts)]
        references = [untuned(guide) for guide in self.parts if guide.reference]
        plain = State("", ())
        return [(state, False) for state in (plain, *references, *map(state_of, (self.merged, *self.parts)))]

    def measure(self, forwards: Forwards, family: Family) -> Difference:
        """Both sides, summed in float64."""
        if self.group.explicit:
            merged, ensembled = values(forwards, family, [self.merged]), values(forwards, family, self.parts)
        else:
            # Where guidance decides: at the tokens that the base would consider, not over the whole vocabulary.
            best = forwards.logprobs(State("", ())).topk(min(BEST, forwards.vocabulary), dim=-1).indices
            merged, ensembled = _log_ratios(forwards, [self.merged], best), _log_ratios(forwards, self.parts, best)
        difference = (merged - ensembled).abs()
        return Difference(
            self.group.name,
            self.words,
            float(difference.mean()),
            float(difference.max()),
            float(ensembled.std(correction=0)),
        )


def values(forwards: Forwards, family: Family, guides: Sequence[Guide]) -> Tensor:
    """[P] float64: sum_i w_i V_i of every prefix.

    A merged head is linear, so its value is the sum of its heads' values on the merged trunk; taken like this, guides
    that differ in nothing but their heads give exactly the ensemble's numbers.
    """
    total = torch.zeros(len(forwards.answer), dtype=torch.float64)
    for guide in guides:
        hidden = forwards.hidden(state_of(guide)).double()
        for name, share in guide.head:
            head = family.heads[name]
            total += guide.weight * share * (hidden @ head.weight.double() + head.bias)
    return total


def _log_ratios(forwards: Forwards, guides: Sequence[Guide], tokens: Tensor) -> Tensor:
    """[P, k] float64: sum_i w_i (lp_i - lp_ref) at ``tokens`` [P, k]."""
    total = torch.zeros(tokens.shape, dtype=torch.float64)
    for guide in guides:
        total += guide.weight * forwards.logprobs(state_of(guide)).gather(1, tokens).double()
        if guide.reference:
            total -= guide.weight * forwards.logprobs(untuned(guide)).gather(1, tokens).double()
    return total
