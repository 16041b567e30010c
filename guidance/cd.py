"""``cd``: controlled decoding with a prefix scorer (arXiv 2310.17022), tokenwise."""

from ladle.guidance.scored_method import ScoredMethod


class ControlledDecoding(ScoredMethod):
    """p(z) proportional to p_base(z) * exp(lambda * sum_i mu_i V_i(x, y<t, z)); lambda is the strength.

    The paper's tokenwise decoding, and its linear combination of prefix scorers for several rewards. It scores every
    token; that we score the 20 best and rule out the rest is our approximation (``candidates`` sets how many).
    """

    name = "cd"
    candidates = 20
    restricted = True
