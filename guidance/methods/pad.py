"""``pad``: personalised alignment at decoding time (arXiv 2410.04070)."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import Mask
from ladle.guidance.values import guides, usable
from ladle.merging.family.family import Family

CANDIDATES = 10


class Pad(GuidanceMethod):
    """S(z) = l_base(z) + w * (lp_value(z) - lp_base(z)) over the base's 10 best tokens z.

    The authors' reward is a difference of log-softmaxes over the candidates; those constants cancel, so it is
    (1 - w) l_base + w l_value within the candidates: at w = 1 the value's order, beyond it extrapolation. w is the
    strength. The paper tells its model the preference in words, which is a value's own system message; with several
    objectives the values are merged by the preference (our reconstruction), or ensembled where their messages differ.
    """

    name = "pad"
    options = frozenset({"strength", "combine", "candidates", "coefficients"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return usable(family, "implicit")

    def guidance(self, request: Request) -> Guidance:
        steering = request.steering
        parts, warnings = guides(request.family, "implicit", request.mu, steering.combine, "merged")
        sources = tuple(part.source(request.strength * part.weight) for part in parts)
        mask = Mask("top_k", steering.candidates or CANDIDATES)
        return Guidance(sources, base_weight=1.0 - request.strength, mask=mask, warnings=warnings)
