"""``cfg``: classifier-free guidance for language models (arXiv 2306.17806)."""

from dataclasses import replace

from ladle.guidance.method import Availability
from ladle.guidance.methods.guidance_method import Guidance, GuidanceMethod, Request
from ladle.guidance.plan import PromptView, Source, Steering
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference


class Cfg(GuidanceMethod):
    """S = u + g * (c - u): away from what the same weights say without the prompt, or with a negative one.

    c sees the request. u sees nothing but the beginning of an answer or, with ``negative_prompt``, the request with
    that text as its system message, which is how the paper steers assistants. g is the strength, 1.5 by default as the
    paper advises. Unlike elsewhere, 1 is what leaves the model as it is, exactly; 0 is u alone.
    """

    name = "cfg"
    options = frozenset({"strength", "coefficients", "negative_prompt"})
    takes_preference = False
    default_strength = 1.5

    def availability(self, family: Family, stated: bool = False) -> Availability:
        return Availability(True)

    def guided(self, family: Family, steering: Steering, preference: Preference | None, base: Source) -> Guidance:
        strength = steering.one_strength(self.default_strength)
        return self.guidance(Request(family, steering, preference, base, strength))

    def guidance(self, request: Request) -> Guidance:
        negative = request.steering.negative_prompt
        view = PromptView("system", negative, "steering.negative_prompt") if negative else PromptView("prompt", "")
        name = "negative" if negative else "unconditional"
        other = replace(request.base, name=name, role="negative", weight=1.0 - request.strength, view=view)
        return Guidance((other,), base_weight=request.strength)
