"""Measures of fronts against computations by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats
from seeds import fresh_seed

from ladle.merging.preferences.simplex import dirichlet, grid
from ladle.recipes.sweeps.control_measures import (
    distinct,
    hypervolume,
    inner_product,
    kendall,
    monotone_share,
    spacing,
    sparsity,
    spearman,
)


def test_hypervolume_is_the_share_of_darts_that_are_dominated() -> None:
    rng = np.random.default_rng(fresh_seed())
    for objectives in (2, 3):
        points, reference = rng.normal(size=(6, objectives)), np.full(objectives, -2.5)
        top = points.max(axis=0)
        darts = rng.uniform(reference, top, size=(40_000, objectives))
        hit = (darts[:, None] <= points).all(axis=2).any(axis=1).mean()
        volume = float(np.prod(top - reference))
        assert hypervolume(points, reference.tolist()) == pytest.approx(hit * volume, abs=0.02 * volume)
    assert hypervolume(np.array([[-3.0, 5.0]]), [-1, -1]) == 0.0


def test_figures_of_a_front_by_hand() -> None:
    points = np.array([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0]])
    weights = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert inner_product(points, weights) == pytest.approx((3 + 1 + 3) / 3)
    assert sparsity(points) == pytest.approx(((1 + 4) + (1 + 4)) / 2)
    assert spacing(points) == pytest.approx(np.std([3, 3, 3]))
    assert sparsity(points[:1]) == spacing(points[:1]) == 0.0
    assert kendall(weights[:, 0], points[:, 0]) == 1.0 and spearman(weights[:, 0], points[:, 1]) == -1.0
    assert np.isnan(kendall(weights[:, 0], np.ones(3))) and np.isnan(spearman(np.ones(3), points[:, 0]))


def test_ranks_against_counting() -> None:
    rng = np.random.default_rng(fresh_seed())
    x, y = rng.permutation(9).astype(float), rng.normal(size=9)
    pairs = list(itertools.combinations(range(9), 2))
    agree = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)
    assert kendall(x, y) == pytest.approx(agree / len(pairs))
    # Points of one weight say nothing; scipy has the same figure under another name.
    tied = rng.integers(4, size=9).astype(float)
    tied[:2] = 0.0, 1.0
    assert kendall(tied, y) == pytest.approx(stats.somersd(tied, y).statistic)
    assert kendall(np.array([0.0, 0.0, 0.5, 0.5, 1.0]), np.arange(5.0)) == 1.0
    ranks = y.argsort().argsort()
    assert spearman(x, y) == pytest.approx(np.corrcoef(x, ranks)[0, 1])


def test_monotone_steps_are_over_the_means_of_a_weight() -> None:
    weights = np.array([0.0, 0.5, 0.5, 1.0])
    assert monotone_share(weights, np.array([0.0, 5.0, -3.0, 2.0])) == 1.0
    assert monotone_share(weights, np.array([0.0, 5.0, 3.0, 2.0])) == 0.5
    assert np.isnan(monotone_share(np.ones(3), np.arange(3.0)))


def test_distinct_n() -> None:
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert distinct(["A a"], 1) == 0.5
    assert np.isnan(distinct(["word"], 2))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_points_of_the_simplex(objectives: int) -> None:
    steps = 4
    points = grid(objectives, steps)
    every = {p for p in itertools.product(np.arange(steps + 1) / steps, repeat=objectives) if sum(p) == 1}
    assert set(points) == every and len(points) == len(every)
    assert points == sorted(points, reverse=True)
    seed = fresh_seed()
    drawn = dirichlet(objectives, objectives + 5, seed)
    assert drawn == dirichlet(objectives, objectives + 5, seed) and len(set(drawn)) >= (6 if objectives > 1 else 1)
    assert drawn[:objectives] == [tuple(float(i == j) for j in range(objectives)) for i in range(objectives)]
    for point in drawn:
        assert min(point) >= 0 and sum(point) == pytest.approx(1, abs=1e-9)


def test_what_no_simplex_has_is_refused() -> None:
    with pytest.raises(ValueError, match="steps 0"):
        grid(2, 0)
    with pytest.raises(ValueError, match="number of corners"):
        dirichlet(3, 2, 0)
