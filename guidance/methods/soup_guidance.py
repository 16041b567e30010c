"""What the methods share that guide a Bone Soup of the preference."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.methods.guidance_method import GuidanceMethod
from ladle.guidance.plan import Source, Steering
from ladle.guidance.sources import merged_source
from ladle.guidance.stated import beside, stated_coefficients, takes_over
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import Preference


class SoupGuidance(GuidanceMethod):
    """The base that is guided is merged for the preference, unless ``coefficients`` says how; steering vectors are
    added to it."""

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return BoneSoup().availability(family, stated)

    def base(
        self, family: Family, steering: Steering, preference: Preference | None
    ) -> tuple[Coefficients | None, Source]:
        if takes_over(family, steering):
            return super().base(family, steering, preference)
        assert preference is not None
        merged = beside(BoneSoup().coefficients(family, preference), stated_coefficients(family, steering))
        return merged, merged_source(merged)
