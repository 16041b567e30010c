"""``fudge``: FUDGE, future discriminators (arXiv 2104.05218)."""

from ladle.guidance.methods.scored_method import ScoredMethod


class Fudge(ScoredMethod):
    """S(z) = l_base(z) + lambda * sum_i mu_i log sigmoid(c_i(x, y<t, z)) over the 200 best tokens z and nothing else.

    The values are classifiers trained on prefixes with the label of the whole. lambda is the strength: 1 by default in
    the authors' code, 4 for topics. Several attributes add their log-probabilities; that the preference weighs them is
    ours: with n objectives of equal weight, strength n * lambda is the paper's plain sum. Merged classifiers apply the
    sigmoid once, to the merged score.
    """

    name = "fudge"
    candidates = 200
    transform = "log_sigmoid"
    restricted = True
