"""The best of all mixes of some points, where it may cost no more than a bound."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Evaluate = Callable[[Array], tuple[Array, Array]]
"""Scores and costs, float64 [points], of points [points, n]."""

_STARTS = 1024
"""Random mixes of the points that the search begins among."""
_WAYS = 0.5 ** np.arange(1, 11)
"""How far towards one of the points a step goes."""
_GAIN = 1e-5
"""The least gain for which another step is made."""
_PRICES = (1e-3, 1e3)
_ROUNDS = 12


def best_mix(points: Array, evaluate: Evaluate, bound: float) -> Array:
    """A convex combination of ``points`` [points, n] with about the best score of all that cost at most ``bound``; the
    first of the points if none is found.

    A price on the cost takes the place of the bound: a step along the bound would have to hit it, one at a price need
    not. The price is halved in until the bound is kept, and the rest of the way is looked for between the best mixes
    on both sides of it. Whatever is tried is a mix: steps go towards one of the points.
    """
    draw = np.random.default_rng(0)
    # The points themselves, and sparse mixes of them: a Dirichlet with a small parameter puts most weight on few
    # points. Seeded, so that a preference always finds the same mix.
    starts = np.vstack([points, draw.dirichlet(np.full(len(points), 0.1), size=_STARTS) @ points])
    scores, costs = evaluate(starts)

    def climb(price: float) -> tuple[Array, float, bool]:
        """A mix of about the best score less its cost at ``price``, its score, and whether it keeps the bound."""
        best = starts[int(np.argmax(scores - price * costs))]
        while True:
            # [ways, points, n]: from the best so far, steps of 1/2 to 1/1024 of the way towards each of the points, all
            # tried at once.
            steps = best + _WAYS[:, None, None] * (points - best)
            tried = np.vstack([best, steps.reshape(-1, points.shape[1])])
            score, cost = evaluate(tried)
            net = score - price * cost
            place = int(np.argmax(net))
            best = tried[place]
            if not net[place] > net[0] + _GAIN:
                return best, float(score[place]), bool(cost[place] <= bound)

    over, _, kept = climb(0.0)
    if kept:
        return over
    # The best of the random mixes that keep the bound is what there is if no price finds a better one.
    kept_scores = np.where(costs <= bound, scores, -np.inf)
    first = int(np.argmax(kept_scores))
    within, top = starts[first], kept_scores[first]
    low, high = _PRICES
    for _ in range(_ROUNDS):
        # Bisection on a logarithmic scale: too low a price breaks the bound, too high a one gives score away.
        price = (low * high) ** 0.5
        mix, score, kept = climb(price)
        if not kept:
            low, over = price, mix
            continue
        high = price
        if score > top:
            within, top = mix, score
    # On the line between a mix that keeps the bound and a better one that does not, the bound is met somewhere.
    between = within + np.linspace(0.0, 1.0, 129)[:, None] * (over - within)
    ways, prices = evaluate(between)
    return between[int(np.argmax(np.where(prices <= bound, ways, -np.inf)))]
