"""What the methods share that score the base's best tokens with explicit values."""

from typing import Literal

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import Scorer
from ladle.guidance.values import guides, usable
from ladle.merging.family.family import Family


class ScoredMethod(GuidanceMethod):
    """S(z) = l_base(z) + strength * sum_i mu_i f(V_i(x, y<t, z)) for the candidates z, the base's best tokens.

    With several objectives the values' predictions are weighed, as the papers do that have several; ``combine: merged``
    merges their weights, scalar heads included (our option).
    """

    options = frozenset({"strength", "combine", "candidates", "coefficients"})
    candidates: int
    transform: Literal["identity", "log_sigmoid"] = "identity"
    centred = False
    restricted = False

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return usable(family, "explicit")

    def guidance(self, request: Request) -> Guidance:
        parts, warnings = guides(request.family, "explicit", request.mu, request.steering.combine, "ensemble")
        scorer = Scorer(
            candidates=request.steering.candidates or self.candidates,
            strength=request.strength,
            transform=self.transform,
            centred=self.centred,
            restricted=self.restricted,
        )
        return Guidance(tuple(part.source() for part in parts), scorer=scorer, warnings=warnings)
