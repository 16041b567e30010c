"""``args``: ARGS, alignment as reward-guided search (arXiv 2402.01694)."""

from ladle.guidance.methods.scored_method import ScoredMethod


class Args(ScoredMethod):
    """S(z) = l_base(z) + w * r(x, y<t, z) over the 10 best tokens z and nothing else, on raw logits; w is the strength.

    As in the authors' ``argsearch.py`` and README (k = 10, w = 1): greedy takes the best candidate, sampling draws from
    softmax(S / T) over the candidates.
    """

    name = "args"
    candidates = 10
    restricted = True
