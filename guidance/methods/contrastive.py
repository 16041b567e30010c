"""``contrastive``: contrastive decoding (arXiv 2210.15097), an expert against an amateur."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import Mask, Source
from ladle.merging.family.family import Family

PLAUSIBLE = 0.1
AMATEUR_TEMPERATURE = 0.5


class Contrastive(GuidanceMethod):
    """S = l_base - strength * l_amateur / 0.5 over the tokens z with p_base(z) >= 0.1 * max p_base.

    As in the authors' code: the amateur's logits are divided by their own temperature (0.5 with GPT-2) and weighed by
    ``st_coef``, our strength. Its default 0.5 is the code's and gives l_base - l_amateur, the paper's formula at an
    amateur temperature of 1; the authors' README runs it at 1, with beam or greedy search. The weights' sum is
    1 - 2 * strength, 0 by default: without the mask this would not be a distribution over sensible tokens, and at high
    strength plain sampling prefers what the amateur finds unlikely.
    """

    name = "contrastive"
    takes_preference = False
    default_strength = 0.5

    def availability(self, family: Family, stated: bool = False) -> Availability:
        if family.amateur is None:
            return Availability(False, "the family has no amateur ([[models]] with amateur = true)")
        return Availability(True)

    def guidance(self, request: Request) -> Guidance:
        assert request.family.amateur is not None, "availability() was not asked"
        # A temperature divides the amateur's logits, which in a linear sum is a weight.
        weight = -request.strength / AMATEUR_TEMPERATURE
        amateur = Source("amateur", "amateur", weight, (), request.family.amateur)
        return Guidance((amateur,), mask=Mask("relative", PLAUSIBLE))
