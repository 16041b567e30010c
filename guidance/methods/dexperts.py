"""``dexperts``: DExperts (arXiv 2105.03023), towards experts and away from anti-experts."""

from dataclasses import replace

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import Mask, PromptView, Source
from ladle.guidance.values import guides, usable
from ladle.merging.family.family import Family, ValueMember

FILTER_P = 0.9


class DExperts(GuidanceMethod):
    """S = l_base + a * (l_expert - l_anti) within the base's nucleus of mass 0.9; a is the strength.

    As in the authors' ``dexperts_generation.py``: the base is filtered by top-p first, logits are raw, temperature and
    truncation follow the sum, and a missing anti-expert is replaced by the base itself. Experts are the implicit
    values; with several objectives every pair has the weight a * mu_i (our reconstruction, the paper has one pair).
    The default a is 2, the paper's for detoxification.
    """

    name = "dexperts"
    options = frozenset({"strength", "coefficients"})
    default_strength = 2.0

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return usable(family, "implicit")

    def guidance(self, request: Request) -> Guidance:
        parts, warnings = guides(request.family, "implicit", request.mu, "ensemble", "ensemble")
        sources: list[Source] = []
        for part in parts:
            weight = request.strength * part.weight
            sources += [part.source(weight), replace(_anti(request, part.values[0]), weight=-weight)]
        return Guidance(tuple(sources), mask=Mask("top_p", FILTER_P), warnings=warnings)


def _anti(request: Request, value: ValueMember) -> Source:
    if value.anti is None:
        return request.base
    view = PromptView("system", value.system) if value.system is not None else None
    return Source(value.anti, "anti", 1.0, ((value.anti, 1.0),), value.model, view)
