"""``mage``: MAGE, Merge and Guide (arXiv 2510.03782): a base merged for the preference, guided by merged values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, Request
from ladle.guidance.methods.soup_guidance import SoupGuidance
from ladle.guidance.plan import Scorer, Source, Steering
from ladle.guidance.stated import takes_over
from ladle.guidance.values import Kind, guides, log_ratio, usable
from ladle.merging.exceptions import CodedText, InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

CANDIDATES = 20
COMBINE: Mapping[Kind, Literal["merged", "ensemble"]] = {"implicit": "merged", "explicit": "ensemble"}
"""How values are combined where a request does not say."""


class Mage(SoupGuidance):
    """Stage 1 is a Bone Soup for the preference, or another merge for it (``base``, ours); stage 2 guides it by values
    merged with the same preference.

    From the paper's abstract and overview: the two stages, that stage 1 is Bone Soup, that values are explicit or
    implicit, one per objective or backbone, and merged into one guide. Its equations were not at hand, so these are our
    reconstruction, after the nearest published methods:

    - implicit: S = l_base(mu) + eta * (l_psi(mu) - l_ref), as emulated fine-tuning (arXiv 2310.12962) does; values
      trained without a reference are added without one, as GenARM (arXiv 2410.08193) does.
    - explicit: S(z) = l_base(mu)(z) + eta * (V_mu(z) - mean over the candidates of V_mu), as VAS (arXiv 2405.06639)
      does; the other tokens keep their scores.
    - both: the sum of the two, each with its own eta.

    ``combine: ensemble`` weighs the values' predictions instead of merging their weights; the two agree to first order
    in the members' deltas, and exactly where only a linear head differs. The paper merges both kinds. Explicit values
    are asked one by one unless a request says otherwise (ours): merged ones keep less than half of what they say.
    """

    name = "mage"
    options = frozenset(
        {"strength", "value", "base", "combine", "candidates", "coefficients", "normalize", "kl_budget"}
    )

    def availability(self, family: Family, stated: bool = False) -> Availability:
        base = super().availability(family, stated)
        if not base.available:
            return base
        states = [usable(family, "implicit"), usable(family, "explicit")]
        if any(state.available for state in states):
            return Availability(True)
        return Availability(False, "; ".join(state.reason for state in states))

    def guided(self, family: Family, steering: Steering, preference: Preference | None, base: Source) -> Guidance:
        kinds = _kinds(family, steering.value)
        if isinstance(steering.strength, Mapping) and len(kinds) == 2:
            etas = {kind: steering.strength.get(kind, 1.0) for kind in kinds}
        else:
            etas = dict.fromkeys(kinds, steering.one_strength())
        if steering.candidates is not None and "explicit" not in kinds:
            reason = "it applies only to explicit values, and this request uses implicit ones"
            raise InputError("steering.candidates", steering.candidates, reason=reason)
        guidance = Guidance()
        if takes_over(family, steering):
            text = "coefficients were given, so the preference weighs only the values"
            guidance = Guidance(warnings=(CodedText("preference_weighs_values", text),))
        # Each kind is resolved even at a strength of 0, so that what it refuses, it refuses at every strength; only
        # then is it left out.
        for kind, eta in etas.items():
            part = self._part(Request(family, steering, preference, base, eta), kind)
            guidance = replace(guidance, warnings=guidance.warnings + part.warnings)
            if eta != 0.0:
                guidance = replace(
                    guidance, sources=guidance.sources + part.sources, scorer=guidance.scorer or part.scorer
                )
        return guidance

    def guidance(self, request: Request) -> Guidance:
        return self.guided(request.family, request.steering, request.preference, request.base)

    def _part(self, request: Request, kind: Kind) -> Guidance:
        parts, warnings = guides(request.family, kind, request.mu, request.steering.combine, COMBINE[kind])
        if kind == "implicit":
            return Guidance(tuple(log_ratio(parts, request.strength)), warnings=warnings)
        scorer = Scorer(request.steering.candidates or CANDIDATES, request.strength, centred=True)
        return Guidance(tuple(part.source() for part in parts), scorer=scorer, warnings=warnings)


def _kinds(family: Family, wanted: str | None) -> tuple[Kind, ...]:
    """The kinds of value to guide by; without a word, implicit ones where there are such. Raises InputError."""
    states: dict[Kind, Availability] = {"implicit": usable(family, "implicit"), "explicit": usable(family, "explicit")}
    ready = [kind for kind, state in states.items() if state.available]
    if wanted is None:
        return (ready[0],)
    kinds: tuple[Kind, ...] = tuple(kind for kind in states if wanted in (kind, "both"))
    for kind in kinds:
        if kind not in ready:
            raise InputError("steering.value", wanted, ", ".join(ready), states[kind].reason)
    return kinds
