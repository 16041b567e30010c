"""``amplify``: a merged model moved further away from the base it was grown from, in its scores."""

from ladle.guidance.methods.guidance_method import Guidance, Request
from ladle.guidance.methods.soup_guidance import SoupGuidance
from ladle.guidance.plan import Source


class Amplify(SoupGuidance):
    """S = l_soup(mu) + strength * (l_soup(mu) - l_base): what merging did to every next-token score, done again.

    Two sources, one fewer than MAGE with implicit values, and no value models: the soup guides itself. It is emulated
    fine-tuning (arXiv 2310.12962) with the merged model as the tuned one and its reward scaled by 1 + strength; as a
    method on top of a Bone Soup it is ours. Strength 0 is the soup itself, -1 the base.
    """

    name = "amplify"
    options = frozenset({"strength", "base", "coefficients", "kl_budget"})
    default_strength = 0.5

    def guidance(self, request: Request) -> Guidance:
        away = Source("reference", "reference", -request.strength, ())
        return Guidance((away,), base_weight=1.0 + request.strength)
