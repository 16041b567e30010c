"""Does what guides fit what is guided?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ladle.guidance.diagnostics.forwards import Forwards, State
from ladle.guidance.diagnostics.groups import Group, state_of, untuned
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.values import Guide
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

BEST = 20
"""A guide's favourite should be among so many of the base's best (our choice; traces count the same)."""
FAR_NATS = 2.0
"""Mean KL a token above which guide and base speak differently (our choice)."""
OFTEN_OUTSIDE = 0.05
"""Share of positions at which guiding picks a token that the base finds implausible, above which the guide overrules
the base rather than steers it (our choice)."""


@dataclass(frozen=True)
class Compatibility:
    """Base and guide at one preference.

    Attributes:
        kind: of the guide's group.
        preference: in words.
        base: ``bone_soup``, or ``base`` for the plain model.
        divergence: mean KL(base(mu) || guide(mu)) a token, nats.
        largest: of it.
        favoured: share of positions where the token that the guide favours most, argmax(psi - ref), is none of the 20
            best of the base. It has no limit: the largest of so many ratios is often one of a token that neither model
            would say, even where the guide is close to the base.
        outside: share of positions where the token that comes out best at strength 1, argmax(base + psi - ref), is
            none of them.
    """

    kind: str
    preference: str
    base: str
    divergence: float
    largest: float
    favoured: float
    outside: float

    @property
    def fits(self) -> bool:
        """Whether both measures are within their limits."""
        return self.divergence <= FAR_NATS and self.outside <= OFTEN_OUTSIDE

    def warning(self) -> str:
        faults = []
        if self.divergence > FAR_NATS:
            faults.append(f"the guide is {self.divergence:.3g} nats a token from the base (at most {FAR_NATS:g})")
        if self.outside > OFTEN_OUTSIDE:
            faults.append(
                f"at strength 1 it picks a token outside the base's {BEST} best at {self.outside:.0%} of the positions "
                f"(at most {OFTEN_OUTSIDE:.0%})"
            )
        return f"{self.kind}, {self.preference}: {', and '.join(faults)}; lower `strength`, or train them closer"


@dataclass(frozen=True)
class Fit:
    """A preference at which a guide is held against its base.

    A cheap stand-in for the compatibility that MAGE (arXiv 2510.03782) speaks of; how the paper measures it we do not
    know, so this is our reconstruction. base(mu) is the Bone Soup of the preference where the family has one, as MAGE
    guides it, else the plain base. psi is the merged guide; guides that cannot be merged count as the normalised
    product of their distributions with their weights. Without a reference, psi - ref is psi.
    """

    group: Group
    words: str
    base: State
    guides: tuple[Guide, ...]

    @classmethod
    def of(cls, family: Family, group: Group, preference: Preference, words: str) -> Fit:
        mix: dict[str, float] = {}
        if BoneSoup().members(family).available:
            weights = BoneSoup().coefficients(family, preference).as_dict()
            for name, weight in weights.items():
                member = family.members_of[name]
                mix[member] = mix.get(member, 0.0) + weight
        return cls(group, words, State.of("", mix), tuple(group.whole(preference)))

    def states(self) -> list[tuple[State, bool]]:
        """What has to be computed: (state, whether hidden states are wanted)."""
        references = [untuned(guide) for guide in self.guides if guide.reference]
        return [(state, False) for state in (self.base, *references, *map(state_of, self.guides))]

    def measure(self, forwards: Forwards) -> Compatibility:
        """KL in float64."""
        base = forwards.logprobs(self.base)
        # ``score`` is the guide's own distribution, up to its normaliser; ``gain`` is what it adds to the base's scores
        # at strength 1.
        score, gain = torch.zeros_like(base), torch.zeros_like(base)
        for guide in self.guides:
            own = forwards.logprobs(state_of(guide))
            score += guide.weight * own
            gain += guide.weight * own
            if guide.reference:
                gain -= guide.weight * forwards.logprobs(untuned(guide))
        divergences = []
        for ours, theirs in zip(base.split(64), score.split(64), strict=True):  # float64 of all at once is large
            exact = ours.double()
            divergences.append((exact.exp() * (exact - theirs.double().log_softmax(dim=-1))).sum(dim=-1))
        divergence = torch.cat(divergences)
        favoured = _outside(base, gain)
        favoured[gain.amax(dim=-1) == gain.amin(dim=-1)] = False  # a guide that is its own reference favours nothing
        return Compatibility(
            self.group.name,
            self.words,
            "bone_soup" if self.base.coefficients else "base",
            float(divergence.mean()),
            float(divergence.max()),
            float(favoured.double().mean()),
            float(_outside(base, base + gain).double().mean()),
        )


def _outside(base: Tensor, scores: Tensor) -> Tensor:
    """[P] bool: the best of ``scores`` [P, vocabulary] is none of the best of ``base``."""
    best = scores.argmax(dim=-1, keepdim=True)
    return (base > base.gather(1, best)).sum(dim=-1) >= BEST
