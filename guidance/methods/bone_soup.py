"""``bone_soup``: Bone Soup (arXiv 2502.10762), backbones trained on mixed rewards, mixed by solving for them."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.merging_method import MergingMethod
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients, bone_soup
from ladle.merging.preferences.preference import Preference


class BoneSoup(MergingMethod):
    """Coefficients from B^T x = k * mu over the family's backbones."""

    name = "bone_soup"

    def members(self, family: Family) -> Availability:
        if not family.backbones:
            return Availability(False, "the family has no backbones")
        if family.matrix is None:
            return Availability(False, "the family has no backbone-reward matrix: [soup] or rewards of every backbone")
        return Availability(True)

    def coefficients(self, family: Family, preference: Preference) -> Coefficients:
        assert family.matrix is not None, "members() was not asked"
        return bone_soup(preference, family.matrix, family.backbones, family.extrapolation)
