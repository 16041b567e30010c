"""``parm``: PARM (arXiv 2505.06274), one autoregressive reward model that takes the preference."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import PromptView, Source
from ladle.merging.family.family import Family, ValueMember


class Parm(GuidanceMethod):
    """S = l_base + strength * l_psi(mu), two sources for any number of objectives; the authors' coefficient is 1.

    The model's adapter is a PBLoRA, dW = s (B1 W1 A1 + B2 W2(mu) A2) with W2(mu) = sum_i mu_i M_i: linear in the
    preference, so that its first part and every objective's B2 M_i A2 are members with the coefficients 1 and mu_i.
    """

    name = "parm"
    options = frozenset({"strength", "coefficients", "normalize"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        values = [value for value in family.values if value.conditioned]
        if not values:
            return Availability(False, "the family has no value that is conditioned on the preference (PBLoRA)")
        if _complete(family) is None:
            return Availability(False, f"value {values[0].name!r} is not conditioned on every objective")
        return Availability(True)

    def guidance(self, request: Request) -> Guidance:
        value = _complete(request.family)
        assert value is not None, "availability() was not asked"
        mu = request.mu.as_dict()
        shares = tuple((member, mu[objective]) for objective, member in value.conditioned if mu[objective] != 0.0)
        view = PromptView("system", value.system) if value.system is not None else None
        terms = ((value.member, 1.0), *shares)
        return Guidance((Source(value.name, "guide", request.strength, terms, value.model, view),))


def _complete(family: Family) -> ValueMember | None:
    """The first value that takes a whole preference."""
    objectives = set(family.objectives)
    complete = (value for value in family.values if value.conditioned and set(dict(value.conditioned)) == objectives)
    return next(complete, None)
