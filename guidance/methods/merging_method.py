"""What the methods that merge weights share: preference -> coefficients -> one merged source."""

from abc import ABC, abstractmethod

from ladle.guidance.method import Availability
from ladle.guidance.plan import Plan, Steering
from ladle.guidance.sources import arrange, merged_source
from ladle.guidance.stated import beside, stated_coefficients, takes_over
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import NORMALISED, WITHOUT_EFFECT, Preference


class MergingMethod(ABC):
    """A method whose whole effect is one set of merged weights.

    ``steering.coefficients`` replaces what the preference would give, unless it names steering vectors alone, which are
    added to that. ``normalize: sum`` divides the coefficients by
    their sum, ``normalize: norm`` makes the merged delta as long as its members'. ``strength`` then scales all of them,
    W0 + strength * sum_j c_j D_j: 1 is the method as published, 0 the base exactly. Strength and norm are our own
    options, not the papers'.
    """

    name: str
    options = frozenset({"strength", "coefficients", "normalize"})
    normalizations: tuple[str, ...] = ("none", "sum", "norm")
    takes_preference = True
    needs: frozenset[str] = frozenset()

    @abstractmethod
    def members(self, family: Family) -> Availability:
        """Whether the family has the members to turn a preference into coefficients."""

    def availability(self, family: Family, stated: bool = False) -> Availability:
        if stated and family.weighable:
            return Availability(True)
        return self.members(family)

    @abstractmethod
    def coefficients(self, family: Family, preference: Preference) -> Coefficients:
        """The method's coefficients for a preference. Raises InputError."""

    def plan(self, family: Family, steering: Steering) -> Plan:
        preference = None
        if steering.preference is not None:
            preference = Preference.of(steering.preference, family.objectives, field="steering.preference")
        warnings: tuple[str, ...] = ()
        # Coefficients that name members take the preference's place; steering vectors alone are added to what it gives.
        stated = stated_coefficients(family, steering)
        if stated is not None and takes_over(family, steering):
            merged = stated
            if preference is not None:
                warnings += (WITHOUT_EFFECT,)
        elif preference is None:
            allowed = f"weights over {', '.join(family.objectives)} (required by method {self.name})"
            raise InputError("steering.preference", None, allowed)
        else:
            merged = beside(self.coefficients(family, preference), stated)
            if preference.normalised:
                warnings += (NORMALISED,)
        if steering.normalize == "sum":
            merged = merged.summing_to_one("steering.normalize")
        elif steering.normalize == "norm":
            merged = merged.keeping_norm(family.delta_norms, "steering.normalize")
        merged = merged.scaled(steering.one_strength())
        return Plan(
            method=self.name,
            preference=preference,
            coefficients=merged,
            sources=arrange([merged_source(merged)], first_stays=True, trace=steering.trace, field="steering"),
            normalize=steering.normalize,
            trace=steering.trace,
            warnings=warnings + merged.warnings,
        )
