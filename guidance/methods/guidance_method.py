"""What the methods that guide share: a base, sources and values around it, one plan."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

from ladle.guidance.method import Availability, ignores_preference
from ladle.guidance.plan import Blocks, Mask, Plan, Scorer, Source, Steering
from ladle.guidance.sources import arrange, merged_source, summing_to_one
from ladle.guidance.stated import stated_coefficients
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import NORMALISED, Preference


@dataclass(frozen=True)
class Request:
    """What a method needs to know of one request.

    Attributes:
        family: what it is asked of.
        steering: the options as they were sent.
        preference: the normalised preference, None for a method that takes none.
        base: the source that is guided.
        strength: the method's factor.
    """

    family: Family
    steering: Steering
    preference: Preference | None
    base: Source
    strength: float

    @property
    def mu(self) -> Preference:
        """The preference of a method that requires one."""
        assert self.preference is not None
        return self.preference


@dataclass(frozen=True)
class Guidance:
    """What a method puts around the base.

    Attributes:
        sources: besides the base.
        base_weight: of the base itself.
        mask, scorer, rule, alpha: as in ``Plan``.
        blocks: as in ``Plan``; what judges them are the sources with a head.
        warnings: for the response.
    """

    sources: tuple[Source, ...] = ()
    base_weight: float = 1.0
    mask: Mask | None = None
    scorer: Scorer | None = None
    blocks: Blocks | None = None
    rule: Literal["linear", "forward_kl", "alpha"] = "linear"
    alpha: float = 1.0
    warnings: tuple[str, ...] = ()


class GuidanceMethod(ABC):
    """A method that combines the scores of several sources.

    ``coefficients`` merges the base that is guided; without them it is the family's base as it is. ``strength`` is the
    paper's own factor, and 0 is the base alone: no other source, no mask, no candidates. ``normalize: sum``, where a
    method's weights do not sum to 1, divides the combined score by their sum, which would otherwise act as an inverse
    temperature. ``kl_budget``, where a method takes it, limits how far a token's distribution may move from the base
    that is guided: a trust region (ours).
    """

    name: str
    options: frozenset[str] = frozenset({"strength", "coefficients"})
    normalizations: tuple[str, ...] = ("none", "sum")
    takes_preference = True
    needs: frozenset[str] = frozenset()
    default_strength = 1.0

    @abstractmethod
    def availability(self, family: Family, stated: bool = False) -> Availability:
        """Whether the family has the members."""

    @abstractmethod
    def guidance(self, request: Request) -> Guidance:
        """What stands around the base at a strength that is not 0. Raises InputError."""

    def plan(self, family: Family, steering: Steering) -> Plan:
        preference, warnings = self.preference(family, steering)
        merged, base = self.base(family, steering, preference)
        if merged is not None:
            warnings += merged.warnings
        guidance = self.guided(family, steering, preference, base)
        sources = [replace(base, weight=guidance.base_weight), *guidance.sources]
        scorer = guidance.scorer
        if steering.normalize == "sum":
            # Candidate values are added to the divided score, so that they are divided by the same sum.
            sources, total = summing_to_one(sources)
            scorer = replace(scorer, strength=scorer.strength / total) if scorer else None
        # A strength of 0 adds nothing that a budget could limit.
        budget = steering.kl_budget if len(sources) > 1 else None
        # Masks, candidates and budgets refer to the first source: then it stays even at weight 0.
        needed = scorer is not None or guidance.mask is not None or budget is not None
        arranged = arrange(sources, first_stays=needed, trace=steering.trace, field="steering.strength")
        blocks = guidance.blocks
        if blocks is not None:
            blocks = replace(blocks, sources=tuple(source for source in arranged if source.head))
        return Plan(
            method=self.name,
            preference=preference,
            coefficients=merged,
            sources=arranged,
            normalize=steering.normalize,
            trace=steering.trace,
            warnings=warnings + guidance.warnings,
            rule=guidance.rule,
            alpha=guidance.alpha,
            mask=guidance.mask,
            scorer=scorer,
            blocks=blocks,
            kl_budget=budget,
        )

    def preference(self, family: Family, steering: Steering) -> tuple[Preference | None, tuple[str, ...]]:
        """The normalised preference and what is to be said about it. Raises InputError."""
        if steering.preference is None:
            if self.takes_preference:
                allowed = f"weights over {', '.join(family.objectives)} (required by method {self.name})"
                raise InputError("steering.preference", None, allowed)
            return None, ()
        preference = Preference.of(steering.preference, family.objectives, field="steering.preference")
        if not self.takes_preference:
            return preference, (ignores_preference(self.name),)
        return preference, (NORMALISED,) if preference.normalised else ()

    def base(
        self, family: Family, steering: Steering, preference: Preference | None
    ) -> tuple[Coefficients | None, Source]:
        """The base that is guided, and its coefficients where it is merged. Raises InputError."""
        merged = stated_coefficients(family, steering)
        if merged is None:
            return None, Source(name="base", role="base", weight=1.0, coefficients=())
        return merged, merged_source(merged)

    def guided(self, family: Family, steering: Steering, preference: Preference | None, base: Source) -> Guidance:
        """``guidance`` at the strength that the request states."""
        strength = steering.one_strength(self.default_strength)
        guidance = self.guidance(Request(family, steering, preference, base, strength))
        # At 0 it is resolved nevertheless, so that what it refuses, it refuses at every strength.
        return guidance if strength != 0.0 else Guidance(warnings=guidance.warnings)
