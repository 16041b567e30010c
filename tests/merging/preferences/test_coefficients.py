import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ladle.merging.exceptions import InputError
from ladle.merging.preferences.coefficients import WARN_L1, bone_soup, check_matrix, circulant, explicit, rewarded_soup
from ladle.merging.preferences.preference import Preference


def names(n: int) -> list[str]:
    return [f"o{i}" for i in range(n)]


def draw_matrix(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Random rows on the simplex with a heavy diagonal: well conditioned, not symmetric."""
    return 0.5 * np.eye(n) + 0.5 * rng.dirichlet(np.ones(n), size=n)


def draw_preference(rng: np.random.Generator, n: int) -> Preference:
    return Preference.of(dict(zip(names(n), rng.dirichlet(np.ones(n)).tolist(), strict=True)), names(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_bone_soup_solves_the_transposed_system(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        matrix, preference = draw_matrix(rng, n), draw_preference(rng, n)
        result = bone_soup(preference, matrix, [f"b{i}" for i in range(n)])
        expected = np.linalg.solve(matrix.T, preference.vector())
        np.testing.assert_allclose(result.values, expected, rtol=1e-12, atol=1e-12)
        assert math.isclose(sum(result.values), 1.0, abs_tol=1e-9) and abs(result.base_share) < 1e-9
        assert math.isclose(result.l1, np.abs(expected).sum(), rel_tol=1e-12)
        assert result.condition is not None and math.isclose(result.condition, np.linalg.cond(matrix), rel_tol=1e-9)
        # The soup's reward is the preferred one: sum_j x_j h_j = mu . r with h = B r.
        rewards = rng.normal(size=n)
        np.testing.assert_allclose(np.dot(result.values, matrix @ rewards), preference.vector() @ rewards, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_a_preference_equal_to_a_row_gives_that_backbone_alone(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = draw_matrix(rng, n)
    for row in range(n):
        preference = Preference.of(dict(zip(names(n), matrix[row].tolist(), strict=True)), names(n))
        np.testing.assert_allclose(bone_soup(preference, matrix, names(n)).values, np.eye(n)[row], atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_extrapolated_coefficients_sum_to_one_with_the_base(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, preference = draw_matrix(rng, n), draw_preference(rng, n)
    k = dict(zip(names(n), rng.uniform(1.0, 2.0, size=n).tolist(), strict=True))
    result = bone_soup(preference, matrix, names(n), k)
    assert math.isclose(sum(result.values) + result.base_share, 1.0, abs_tol=1e-12)
    mu = preference.vector()
    assert math.isclose(result.base_share, sum(m * (1 - k[o]) for m, o in zip(mu, names(n), strict=True)), abs_tol=1e-9)
    # x_j = sum_i mu_i k_i (B^-T)_ji, written out with an explicit inverse.
    inverse = np.linalg.inv(matrix).T
    expected = [sum(mu[i] * k[f"o{i}"] * inverse[j, i] for i in range(n)) for j in range(n)]
    np.testing.assert_allclose(result.values, expected, atol=1e-9)


def test_extrapolation_at_a_corner_is_the_papers_code() -> None:
    # k lam on the backbones, 1 - k on the base; lam = (1.75, -0.75) at beta 0.7 and mu = (1, 0).
    result = bone_soup(Preference.of({"o0": 1.0}, names(2)), circulant(0.7, 2), ["a", "b"], {"o0": 1.25})
    np.testing.assert_allclose(result.values, [1.25 * 1.75, -1.25 * 0.75], atol=1e-12)
    assert math.isclose(result.base_share, -0.25, abs_tol=1e-12)


@pytest.mark.parametrize(("beta", "expected"), [(0.6, (3, -2)), (0.7, (1.75, -0.75)), (0.8, (4 / 3, -1 / 3))])
def test_known_corner_values(beta: float, expected: tuple[float, float]) -> None:
    result = bone_soup(Preference.of({"o0": 1.0}, names(2)), circulant(beta, 2), ["a", "b"])
    np.testing.assert_allclose(result.values, expected, atol=1e-12)
    assert any("large" in warning for warning in result.warnings) == (result.l1 > WARN_L1)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_circulant_is_symmetric_with_unit_rows(n: int, seed: int) -> None:
    beta = float(np.random.default_rng(seed).uniform(1 / n + 0.05, 1.0))
    matrix = circulant(beta, n)
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(np.diag(matrix), beta)


@pytest.mark.parametrize(("beta", "n"), [(0.5, 2), (0.2, 3), (1.01, 2), (math.nan, 2), (0.7, 1)])
def test_circulant_refuses(beta: float, n: int) -> None:
    with pytest.raises(ValueError, match="beta|objectives"):
        circulant(beta, n)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], "singular"),
        ([[0.7, 0.3]], "n x n"),
        ([[1.0]], "n >= 2"),
        ([[0.7, math.nan], [0.3, 0.7]], "finite"),
        ([[0.5 + 1e-12, 0.5 - 1e-12], [0.5, 0.5]], "singular"),
    ],
)
def test_unusable_matrices_are_refused(matrix: list[list[float]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_matrix(matrix)


def test_unusual_matrices_warn() -> None:
    assert any("row 1" in warning for warning in check_matrix([[0.7, 0.3], [0.3, 0.9]])[2])
    assert any("ill-conditioned" in warning for warning in check_matrix([[0.501, 0.499], [0.499, 0.501]])[2])
    assert check_matrix(circulant(0.7, 2))[2] == ()


def test_rewarded_soup_is_the_preference_itself(seed: int) -> None:
    preference = draw_preference(np.random.default_rng(seed), 3)
    result = rewarded_soup(preference, {"o0": "p0", "o1": "p1", "o2": "p2"})
    assert result.as_dict() == {f"p{i}": weight for i, (_, weight) in enumerate(preference.weights)}
    assert result.base_share == 0.0 and result.condition is None
    with pytest.raises(InputError, match="preference.o2"):
        rewarded_soup(Preference.of({"o2": 1}, names(3)), {"o0": "p0"})


def test_explicit_keeps_what_it_is_told() -> None:
    result = explicit({"b": -2.0, "a": 0.5}, ["a", "b", "c"])
    assert result.as_dict() == {"a": 0.5, "b": -2.0}
    assert result.base_share == 2.5 and result.l1 == 2.5
    for bad, field in (({"z": 1.0}, "coefficients.z"), ({"a": math.nan}, "coefficients.a"), ({}, "coefficients")):
        with pytest.raises(InputError) as caught:
            explicit(bad, ["a", "b"])
        assert caught.value.field == field


def test_scaling_and_normalising() -> None:
    result = explicit({"a": 3.0, "b": 1.0}, ["a", "b"])
    assert result.warnings and not result.scaled(0.5).warnings
    assert result.scaled(0.0).values == (0.0, 0.0) and result.scaled(0.0).base_share == 1.0
    assert result.summing_to_one("normalize").as_dict() == {"a": 0.75, "b": 0.25}
    with pytest.raises(InputError, match="normalize"):
        explicit({"a": 1.0, "b": -1.0}, ["a", "b"]).summing_to_one("normalize")
