"""``genarm``: GenARM (arXiv 2410.08193), autoregressive reward models beside the base."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.values import guides, usable
from ladle.merging.exceptions import CodedText
from ladle.merging.family.family import Family


class GenArm(GuidanceMethod):
    """S = l_base + sum_i alpha_i l_i, alpha_i = strength * mu_i: a token's reward is its log-probability under the
    reward model, without a reference.

    The alphas are not normalised to sum 1; the weights' sum 1 + sum_i alpha_i sharpens the distribution. The authors'
    code divides by that sum and multiplies it back as a temperature; ``normalize: sum`` divides only, as their option
    ``normalize_logit`` does. Every reward model is a source of its own; ``combine: merged`` merges them (our option).
    """

    name = "genarm"
    options = frozenset({"strength", "combine", "coefficients", "normalize", "kl_budget"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return usable(family, "implicit")

    def guidance(self, request: Request) -> Guidance:
        family, combine = request.family, request.steering.combine
        # Reward models as the paper trains them have no reference; where there are no such, tuned policies stand in.
        own = False if usable(family, "implicit", reference=False).available else None
        parts, warnings = guides(family, "implicit", request.mu, combine, "ensemble", reference=own)
        tuned = [value.name for part in parts for value in part.values if value.reference]
        if tuned:
            text = f"trained against a reference, which genarm leaves out: {', '.join(tuned)}"
            warnings += (CodedText("reference_left_out", text),)
        return Guidance(tuple(part.source(request.strength * part.weight) for part in parts), warnings=warnings)
