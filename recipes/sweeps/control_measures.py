"""Measures of control: what a method's front of mean rewards is worth, and how well rewards follow their weights.

Definitions as commonly used for multi-objective alignment (Bone Soup, arXiv 2502.10762, reports these measures without
formulas): our reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from scipy import stats


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """Volume that ``points`` [points, objectives] dominate above ``reference`` [objectives]; higher rewards are
    better."""
    return float(moocore.hypervolume(np.asarray(points, dtype=float), ref=np.asarray(reference), maximise=True))


def inner_product(points: np.ndarray, weights: np.ndarray) -> float:
    """Mean over the points of mu . p, both [points, objectives]."""
    return float((np.asarray(points) * np.asarray(weights)).sum(axis=1).mean())


def sparsity(points: np.ndarray) -> float:
    """sum_j sum_i (p_(i)j - p_(i+1)j)^2 / (N - 1), every objective's values sorted: 0 for one point."""
    ordered = np.sort(np.asarray(points, dtype=float), axis=0)
    return float((np.diff(ordered, axis=0) ** 2).sum() / max(1, len(ordered) - 1))


def spacing(points: np.ndarray) -> float:
    """Standard deviation of the L1 distances from each point to its nearest neighbour: 0 for fewer than two points."""
    points = np.asarray(points, dtype=float)
    if len(points) < 2:
        return 0.0
    gaps = np.abs(points[:, None] - points).sum(axis=2)
    np.fill_diagonal(gaps, np.inf)
    return float(gaps.min(axis=1).std())


def kendall(weights: np.ndarray, rewards: np.ndarray) -> float:
    """Kendall's tau of one objective's weights and mean rewards, both [points], over the pairs of points whose weights
    differ (Somers' D of the reward given the weight); NaN where either is constant.

    A grid over three objectives or more has many points of one weight. They say nothing of whether the reward follows
    it, yet they keep tau-a and tau-b away from 1 however well it does.
    """
    apart = np.sign(np.subtract.outer(np.asarray(weights), np.asarray(weights)))
    risen = np.sign(np.subtract.outer(np.asarray(rewards), np.asarray(rewards)))
    if not apart.any() or not risen.any():
        return float("nan")
    return float((apart * risen).sum() / np.abs(apart).sum())


def spearman(weights: np.ndarray, rewards: np.ndarray) -> float:
    """Spearman's rho of the same; NaN where either is constant."""
    if np.ptp(weights) == 0 or np.ptp(rewards) == 0:
        return float("nan")
    return float(stats.spearmanr(weights, rewards).statistic)


def monotone_share(weights: np.ndarray, rewards: np.ndarray) -> float:
    """Share of the steps from one weight to the next larger one at which the mean reward (over all points of that
    weight) does not fall; NaN for one weight."""
    levels = np.unique(weights)
    if len(levels) < 2:
        return float("nan")
    means = np.array([np.asarray(rewards)[np.asarray(weights) == level].mean() for level in levels])
    return float((np.diff(means) >= 0).mean())


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them (distinct-n, arXiv 1510.03055); NaN where there are none."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.lower().split()
        grams += zip(*(words[start:] for start in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else float("nan")
