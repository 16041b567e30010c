import numpy as np
import pytest

from ladle.recipes.sweeps.control_measures import hypervolume
from ladle.recipes.text_metrics import bootstrap_mean, is_degenerate


def test_bootstrap_interval_covers_and_repeats(random: np.random.Generator) -> None:
    groups = random.normal(2.0, 1.0, size=(400, 3)) + random.normal(0.0, 1.0, size=(400, 1))
    mean, low, high = bootstrap_mean(groups, draws=1000, seed=1)
    assert mean == pytest.approx(groups.mean())
    assert bootstrap_mean(groups, draws=1000, seed=1) == (mean, low, high)
    # Group means have variance 1 + 1/3; 1.96 standard errors on each side.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt((1 + 1 / 3) / 400), rel=0.2)
    assert low < mean < high


def test_bootstrap_resamples_groups_not_values() -> None:
    same = np.repeat([[0.0], [1.0]], 500, axis=1)  # two prompts: half of the resamples are all 0 or all 1
    assert bootstrap_mean(same, draws=500, seed=0)[1:] == (0.0, 1.0)


def test_hypervolume_by_hand() -> None:
    points = np.array([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5], [-5.0, 9.0]])
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(3.0)
    assert hypervolume(points, (3.0, 3.0)) == 0.0


def test_hypervolume_against_counting(random: np.random.Generator) -> None:
    points = random.uniform(-0.5, 1.0, size=(6, 2))
    grid = (np.arange(500) + 0.5) / 500
    x, y = np.meshgrid(grid, grid)
    covered = np.zeros_like(x, dtype=bool)
    for a, b in points:
        covered |= (x < a) & (y < b)
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(covered.mean(), abs=0.01)


@pytest.mark.parametrize("tokens", [[], [1, 2, 3, 4], [1] * 10, [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5]])
def test_degenerate(tokens: list[int]) -> None:
    assert is_degenerate(tokens)


def test_not_degenerate() -> None:
    assert not is_degenerate([1, 2, 3, 4, 5])
    assert not is_degenerate([*range(20), *range(4)])
