"""``rewarded_soup``: Rewarded Soups (arXiv 2306.04488), one policy per objective, mixed by the preference itself."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.merging_method import MergingMethod
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients, rewarded_soup
from ladle.merging.preferences.preference import Preference


class RewardedSoup(MergingMethod):
    """theta = sum_i mu_i theta_i over the family's single-objective policies."""

    name = "rewarded_soup"

    def members(self, family: Family) -> Availability:
        if not family.objectives:
            return Availability(False, "the family has no objectives")
        missing = [objective for objective in family.objectives if objective not in family.singles]
        if missing:
            return Availability(False, f"no policy for objective {', '.join(repr(name) for name in missing)}")
        return Availability(True)

    def coefficients(self, family: Family, preference: Preference) -> Coefficients:
        return rewarded_soup(preference, family.singles)
