"""``base``: the plain base model, the yardstick of everything else."""

from ladle.guidance.method import Availability, ignores_preference
from ladle.guidance.plan import Plan, Source, Steering
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

BASE_SOURCE = Source(name="base", role="base", weight=1.0, coefficients=())


class BaseMethod:
    """The base alone. A preference is accepted, so that a client can compare methods by changing one word, but the
    response warns that it had no effect."""

    name = "base"
    options: frozenset[str] = frozenset()
    normalizations: tuple[str, ...] = ("none",)
    takes_preference = False
    needs: frozenset[str] = frozenset()

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return Availability(True)

    def plan(self, family: Family, steering: Steering) -> Plan:
        preference = None
        warnings: tuple[str, ...] = ()
        if steering.preference is not None:
            preference = Preference.of(steering.preference, family.objectives, field="steering.preference")
            warnings = (ignores_preference(self.name),)
        return Plan(
            method=self.name,
            preference=preference,
            coefficients=None,
            sources=(BASE_SOURCE,),
            normalize=steering.normalize,
            trace=steering.trace,
            warnings=warnings,
        )
