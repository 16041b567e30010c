"""Figures over sets of texts: bootstrap intervals, rank correlation, signs of degeneration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def bootstrap_mean(groups: np.ndarray, *, draws: int, seed: int, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and percentile interval when groups, not single values, are resampled.

    Texts of one prompt resemble each other, so prompts are what is drawn again.

    Args:
        groups: float [groups, values], the same number of values a group.
        draws: number of resamples.
        seed: of the resampling.
        level: coverage of the interval.

    Returns:
        (mean, low, high).
    """
    means = np.asarray(groups, dtype=np.float64).mean(axis=1)
    picks = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.quantile(means[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(means.mean()), float(low), float(high)


def is_degenerate(tokens: Sequence[Hashable]) -> bool:
    """Fewer than five tokens, a sequence of four tokens that occurs three times, or under half of the tokens distinct.

    Args:
        tokens: an answer without its end-of-turn token; or its words.
    """
    if len(tokens) < 5 or len(set(tokens)) * 2 < len(tokens):
        return True
    fours = Counter(tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3))
    return max(fours.values()) >= 3
