"""What the methods share that guide a merge for the preference: a Bone Soup, or the family's fitted one."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.bone_soup import BoneSoup
from ladle.guidance.methods.fitted_soup import FittedSoup
from ladle.guidance.methods.guidance_method import GuidanceMethod
from ladle.guidance.methods.merging_method import MergingMethod
from ladle.guidance.plan import Source, Steering
from ladle.guidance.sources import merged_source
from ladle.guidance.stated import beside, stated_coefficients, takes_over
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import Preference

_SOUPS: dict[str, MergingMethod] = {soup.name: soup for soup in (BoneSoup(), FittedSoup())}


class SoupGuidance(GuidanceMethod):
    """The base that is guided is merged for the preference, unless ``coefficients`` says how; steering vectors are
    added to it. By Bone Soup, or where ``base`` says so by what the family's measured rewards speak for (ours)."""

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return BoneSoup().availability(family, stated)

    def base(
        self, family: Family, steering: Steering, preference: Preference | None
    ) -> tuple[Coefficients | None, Source]:
        if takes_over(family, steering):
            if steering.base is not None:
                reason = "coefficients say already what is merged"
                raise InputError("steering.base", steering.base, reason=reason)
            return super().base(family, steering, preference)
        assert preference is not None
        # The soup that the same preference would give by itself; vectors that a request states are added to it.
        soup = _SOUPS[steering.base or BoneSoup.name]
        state = soup.members(family)
        if not state.available:
            ready = ", ".join(name for name, other in _SOUPS.items() if other.members(family).available)
            raise InputError("steering.base", steering.base, ready, state.reason)
        merged = beside(soup.coefficients(family, preference), stated_coefficients(family, steering))
        return merged, merged_source(merged)
