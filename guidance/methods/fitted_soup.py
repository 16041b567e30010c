"""``fitted_soup``: backbones merged with the coefficients that measured rewards speak for (ours)."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.merging_method import MergingMethod
from ladle.merging.family.family import Family
from ladle.merging.family.surface import FITTED_METHOD, SURFACE_NAME
from ladle.merging.preferences.coefficients import Coefficients, explicit
from ladle.merging.preferences.preference import Preference


class FittedSoup(MergingMethod):
    """Coefficients that maximise prod_i (reward of i above its floor)^mu_i by the family's response surface.

    Bone Soup's B^T x = mu would be right if the reward of a merge were linear in its coefficients. Here the rewards of
    merges were measured (``ladle fit``), and the coefficients are looked for where answers stay fluent.
    """

    name = FITTED_METHOD

    def members(self, family: Family) -> Availability:
        if family.surface is None:
            reason = f"the family, with its members as they are, has no response surface ({SURFACE_NAME}, ladle fit)"
            return Availability(False, reason)
        return Availability(True)

    def coefficients(self, family: Family, preference: Preference) -> Coefficients:
        assert family.surface is not None, "members() was not asked"
        members, best = family.surface.members, family.surface.best(preference.vector().tolist())
        return explicit(dict(zip(members, best, strict=True)), members)
