"""Least squares by counts, and what it explains of points that it was not given."""

import numpy as np
import pytest
from seeds import fresh_seed

from ladle.recipes.fits.regression import explained, solver


def test_a_count_is_worth_as_many_rows() -> None:
    rng = np.random.default_rng(fresh_seed())
    rows, values, counts = rng.normal(size=(12, 4)), rng.normal(size=12), rng.integers(1, 5, size=12)
    repeated = np.linalg.lstsq(np.repeat(rows, counts, axis=0), np.repeat(values, counts), rcond=None)[0]
    assert solver(rows, counts.astype(float)) @ values == pytest.approx(repeated, rel=1e-8)
    plain = np.linalg.lstsq(rows, values, rcond=None)[0]
    assert solver(rows) @ values == pytest.approx(plain, rel=1e-8)


@pytest.mark.parametrize("counted", [False, True])
def test_explained_is_what_fits_without_the_point_foretell(counted: bool) -> None:
    rng = np.random.default_rng(fresh_seed())
    rows = rng.normal(size=(15, 3))
    values = rows @ rng.normal(size=3) + 0.3 * rng.normal(size=15)
    counts = rng.integers(1, 200, size=15).astype(float) if counted else np.ones(15)
    missed = []
    for out in range(15):
        kept = np.arange(15) != out
        scale = np.sqrt(counts[kept])
        fitted = np.linalg.lstsq(rows[kept] * scale[:, None], values[kept] * scale, rcond=None)[0]
        missed.append(counts[out] * (values[out] - rows[out] @ fitted) ** 2)
    spread = (counts * (values - np.average(values, weights=counts)) ** 2).sum()
    found = explained(rows, values, counts if counted else None)
    assert found == pytest.approx(1 - sum(missed) / spread, rel=1e-8)


def test_nothing_is_explained_of_values_that_are_all_the_same() -> None:
    assert explained(np.random.default_rng(fresh_seed()).normal(size=(6, 2)), np.full(6, 2.5)) == 0.0
