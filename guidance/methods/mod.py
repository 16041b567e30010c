"""``mod``: multi-objective decoding (arXiv 2406.18853), policies of single objectives combined at every token."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.methods.rewarded_soup import RewardedSoup
from ladle.guidance.plan import Source
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family


class Mod(GuidanceMethod):
    """The policy that is optimal for sum_i mu_i r_i, from the policies that are optimal for every r_i.

    It wants policies tuned from one base with one divergence and one beta (the authors' ``f_value``,
    ``util_decode.py``):

    - ``reverse_kl``: S = sum_i mu_i lp_i; the authors' code uses the same for ``jsd``;
    - ``forward_kl``: S = -logsumexp_i(-lp_i + ln mu_i);
    - ``alpha``: S = -logsumexp_i(-alpha lp_i + ln mu_i) / alpha. The authors search greedily, without the division;
      for sampling it belongs there (our derivation).

    Policies of weight 0 are not computed; at a corner the rest is that policy itself.

    ``strength`` s is our own option: the optimal policy for s * sum_i mu_i r_i has the base, whose reward is 0, among
    the policies with the weight 1 - s. Only the linear rule admits weights below 0, hence s outside [0, 1].
    """

    name = "mod"
    options = frozenset({"strength", "divergence", "alpha"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return RewardedSoup().members(family)

    def guidance(self, request: Request) -> Guidance:
        divergence = request.steering.divergence or "reverse_kl"
        alpha = request.steering.alpha
        if alpha is None and divergence == "alpha":
            raise InputError("steering.alpha", alpha, "a number > 0 (required by divergence alpha)")
        if alpha is not None and divergence != "alpha":
            raise InputError("steering.alpha", alpha, reason=f"it applies only to divergence alpha, not {divergence}")
        linear = divergence in ("reverse_kl", "jsd")
        strength = request.strength
        if not linear and not 0.0 <= strength <= 1.0:
            raise InputError("steering.strength", strength, f"a number from 0 to 1 with divergence {divergence}")
        # Policies by their share of strength; what is left of 1 is the base's.
        sources = tuple(
            Source(member, "policy", strength * weight, ((member, 1.0),))
            for objective, weight in request.mu.weights
            if weight != 0.0
            for member in (request.family.singles[objective],)
        )
        base_weight = 1.0 - strength
        # One policy is itself under every rule, and only the linear one does not round on the way.
        if linear or (len(sources) == 1 and base_weight == 0.0):
            return Guidance(sources, base_weight)
        if divergence == "alpha":
            assert alpha is not None
            return Guidance(sources, base_weight, rule="alpha", alpha=alpha)
        return Guidance(sources, base_weight, rule="forward_kl")
