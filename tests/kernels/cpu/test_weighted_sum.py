import numpy as np
import pytest

from ladle.kernels.cpu import weighted_sum as module
from ladle.kernels.cpu.weighted_sum import weighted_sum


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_against_float64(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(module, "PART", int(rng.integers(5, 300)))
    n = int(rng.integers(1, 1000))
    terms = [(float(rng.uniform(-2, 2)), rng.standard_normal(n).astype(np.float32)) for _ in range(count)]
    out = np.full(n, np.nan, np.float32)  # what it held before is not read
    weighted_sum(out, terms)
    expected = sum(c * x.astype(np.float64) for c, x in terms)
    assert np.abs(out - expected).max() < 1e-5


def test_what_is_not_finite_stays_where_it_is() -> None:
    first, second = np.ones(10, np.float32), np.ones(10, np.float32)
    first[3], second[5] = np.inf, np.nan
    out = np.empty(10, np.float32)
    weighted_sum(out, [(0.5, first), (2.0, second)])
    assert out[3] == np.inf and np.isnan(out[5]) and (np.delete(out, [3, 5]) == 2.5).all()
