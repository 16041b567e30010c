"""How far a distribution may be moved: scores drawn back towards a base until a KL budget holds.

Plain torch on every device: it runs for the few sequences that set a budget, and most of its passes are skipped where
the budget holds from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 24
"""Trials of t a row at most; sqrt(KL) is nearly linear in t, so that five of them are the rule."""
TOLERANCE = 1e-3
"""Share of sqrt(budget) that may be left unspent."""


def within_budget(scores: Tensor, base: Tensor, budget: Tensor) -> Tensor:
    """base + t (scores - base) a row, with t in [0, 1] as great as KL(softmax of it, softmax of base) <= budget allows.

    The KL rises with t: its derivative is t Var_t(scores - base) >= 0. So t = 1, the row as it is bit for bit, where
    the budget holds there; else t is found between a bound below, whose KL was computed and holds, and one above, by
    the chord of sqrt(KL), which a quadratic KL makes exact (ours).

    Args:
        scores, base: [n, vocabulary], float32 or float64, of one dtype. A token that is -inf in either stays as it is
            in ``scores`` and counts for nothing.
        budget: [n] nats, > 0.

    Returns:
        [n, vocabulary]; ``scores`` itself where no row exceeds its budget. A row with NaN is left as it is.
    """
    result = scores
    # Row by row: vectorised sums must not depend on how many other rows are computed with one.
    for row in range(scores.shape[0]):
        drawn = _draw_back(scores[row], base[row], float(budget[row]))
        if drawn is not None:
            if result is scores:
                result = scores.clone()
            result[row] = drawn
    return result


def _draw_back(scores: Tensor, base: Tensor, budget: float) -> Tensor | None:
    """The row drawn back, None where it need not be."""
    # Tokens that either side rules out are left out of both softmaxes; they stay what they are in the result.
    finite = torch.isfinite(scores) & torch.isfinite(base)
    if bool(scores.isnan().any() | base.isnan().any()):
        return None
    start = torch.log_softmax(base.masked_fill(~finite, -torch.inf), dim=-1)
    gap = torch.where(finite, scores - base, 0.0)
    gap -= (start.exp() * gap).sum()  # from its mean under the base, which cancels in the softmax: fewer digits lost
    root = budget**0.5
    whole = _root_kl(start, gap, 1.0)
    if whole <= root:
        return None
    spare = TOLERANCE * root / 2
    wanted = root - spare  # the middle of what will do, so that a chord may end a little above it
    below, above = 0.0, 1.0
    # Regula falsi on f(t) = sqrt(KL(t)) - wanted, with f(0) = -wanted known and f(1) computed: the root lies between.
    low, high = -wanted, whole - wanted
    factor, stayed = 0.0, ""
    for _ in range(STEPS):
        t = below + (above - below) * -low / (high - low)
        excess = _root_kl(start, gap, t) - wanted
        # Only a t whose KL was computed and holds is ever returned; if none does, t = 0 gives the base.
        if excess <= spare:
            factor = t
        if abs(excess) <= spare:
            break
        # An end that stays twice has its excess halved (the Illinois rule), or the chord would creep towards the other.
        if excess <= 0:
            below, low = t, excess
            high /= 2 if stayed == "above" else 1
            stayed = "above"
        else:
            above, high = t, excess
            low /= 2 if stayed == "below" else 1
            stayed = "below"
    return torch.where(finite, base + factor * (scores - base), scores)


def _root_kl(start: Tensor, gap: Tensor, t: float) -> float:
    """sqrt(KL(p_t, p_0)) of p_t ~ p_0 exp(t gap), ``start`` = log p_0."""
    moved = torch.log_softmax(start + t * gap, dim=-1)
    probabilities = moved.exp()
    terms = probabilities * (moved - start)
    return float(torch.where(probabilities > 0, terms, 0.0).sum().clamp(min=0)) ** 0.5
