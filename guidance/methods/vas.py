"""``vas``: value-augmented sampling (arXiv 2405.06639)."""

from ladle.guidance.methods.scored_method import ScoredMethod


class Vas(ScoredMethod):
    """S(z) = l_base(z) + beta * (V(z) - mean over the candidates of V) for the 20 best tokens z, l_base(z) for the
    others.

    As in the authors' ``VASLogitsProcessor``: centring keeps the candidates' share of the mass about what it was, so
    that nothing has to be ruled out. beta is the strength. Values are weighed by the preference.
    """

    name = "vas"
    candidates = 20
    centred = True
