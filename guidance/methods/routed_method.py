"""What the methods share that route among experts: a router and experts on one base, one plan."""

from abc import ABC, abstractmethod

from ladle.guidance.method import Availability
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.plan import Plan, Routing, Steering
from ladle.guidance.sources import REFERENCE, grown_source
from ladle.guidance.stated import beside, stated_coefficients, takes_over
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import NORMALISED, WITHOUT_EFFECT, Preference


class RoutedMethod(ABC):
    """A method whose experts take turns, by what the router's head says of every token.

    Router and experts are deltas on the base or on further models, which may be of other sizes. A preference merges the
    base by Bone Soup, and ``coefficients`` by what it states: every one of them that was grown from the base is then
    W0 + sum_j c_j D_j + D_own (our own option; the papers have plain models).
    """

    name: str
    options: frozenset[str]
    normalizations: tuple[str, ...] = ("none", "sum")
    takes_preference = False
    needs: frozenset[str] = frozenset()

    @abstractmethod
    def routing(self, steering: Steering, head: str, experts: tuple[int, ...]) -> Routing:
        """What the plan does with its sources, of which the first is the router. Raises InputError."""

    def availability(self, family: Family, stated: bool = False) -> Availability:
        if family.router is None:
            return Availability(False, "the family has no experts with a router ([[experts]], [router])")
        return Availability(True)

    def plan(self, family: Family, steering: Steering) -> Plan:
        assert family.router is not None, "availability() was not asked"
        # What lies under router and experts: W0, or W0 merged for a preference or by stated coefficients.
        preference, merged, warnings = _base(family, steering)
        below = {} if merged is None else merged.as_dict()
        if merged is not None:
            speaking = (family.router.member, *(family.members_of[name] for name in family.experts))
            warnings += _not_merged(family, steering, list(dict.fromkeys(speaking)))
        # Source 0 is the router, and the experts follow in the order of its head's rows.
        routing = self.routing(steering, family.router.name, tuple(range(1, len(family.experts) + 1)))
        complement, weight = routing.factors(steering.normalize)
        # Where the router defers it is either silent or alone.
        own = 1.0 if routing.threshold is not None else complement
        # An expert is a source of its own even where it is also the router, so that traces have its name.
        sources = [grown_source(family, family.router.name, "router", own, below, family.router.member)]
        for name in family.experts:
            sources.append(grown_source(family, name, "expert", weight, below, family.members_of[name]))
        if steering.trace and not any(source.plain for source in sources):
            sources.append(REFERENCE)
        return Plan(
            method=self.name,
            preference=preference,
            coefficients=merged,
            sources=tuple(sources),
            normalize=steering.normalize,
            trace=steering.trace,
            warnings=warnings + (() if merged is None else merged.warnings),
            routing=routing,
        )


def _base(family: Family, steering: Steering) -> tuple[Preference | None, Coefficients | None, tuple[str, ...]]:
    """The preference, the coefficients of the base under the experts (None: as it is) and warnings."""
    # Stated coefficients decide alone; else a preference merges the base by Bone Soup; with neither it stays as it is.
    preference = None
    if steering.preference is not None:
        preference = Preference.of(steering.preference, family.objectives, field="steering.preference")
    stated = stated_coefficients(family, steering)
    if takes_over(family, steering):
        return preference, stated, () if preference is None else (WITHOUT_EFFECT,)
    if preference is None:
        return None, None, ()
    soup = BoneSoup()
    state = soup.members(family)
    if not state.available:
        reason = f"no base can be merged for it: {state.reason}"
        raise InputError("steering.preference", preference.as_dict(), reason=reason)
    said = (NORMALISED,) if preference.normalised else ()
    return preference, beside(soup.coefficients(family, preference), stated), said


def _not_merged(family: Family, steering: Steering, members: list[str]) -> tuple[str, ...]:
    """The warning that a merged base is not under all of the ``members``. Raises InputError where it is under none."""
    beside = [name for name in members if family.model_of(name)]
    if len(beside) == len(members):
        key = "preference" if steering.coefficients is None else "coefficients"
        reason = "it would merge the base, from which neither the router nor any expert was grown"
        raise InputError(f"steering.{key}", dict(getattr(steering, key)), reason=reason)
    return (f"the base is merged, but not under {', '.join(beside)}, grown from other models",) if beside else ()
