"""``proxy_tuning``: proxy-tuning (arXiv 2401.08565) and emulated fine-tuning (arXiv 2310.12962)."""

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.values import guides, log_ratio, usable
from ladle.merging.family.family import Family


class ProxyTuning(GuidanceMethod):
    """S = l_base + strength * sum_i mu_i (l_tuned_i - l_untuned): what tuning did to a small model, done to the base.

    The pair may be of another size than the base (a ``[[models]]`` entry) as long as it shares the tokenizer. Proxy
    tuning is one tuned model at strength 1 on raw logits; emulated fine-tuning is the same sum in log-probabilities
    with several tuned models, and its strength is the amplification beta. Masks and temperature come after the sum.
    ``combine: merged`` merges the tuned models (our option). That the untuned model sees the same system message as the
    tuned one is ours too.
    """

    name = "proxy_tuning"
    options = frozenset({"strength", "combine", "coefficients", "kl_budget"})

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return usable(family, "implicit", reference=True)

    def guidance(self, request: Request) -> Guidance:
        combine = request.steering.combine
        parts, warnings = guides(request.family, "implicit", request.mu, combine, "ensemble", reference=True)
        return Guidance(tuple(log_ratio(parts, request.strength)), warnings=warnings)
