"""``calibration.json``: what is read, what is refused, and what it says of a preference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import fresh_seed
from tiny_models import write_family

from ladle.benchmarks.faults.hill_surface import write_hill_surface
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.calibration import (
    CALIBRATION_NAME,
    Calibration,
    basis,
    basis_size,
    calibrated_on,
    quantile_of,
    weighed_folders,
)
from ladle.merging.family.family import load_family
from ladle.merging.family.manifest import load_manifest
from ladle.merging.family.measurement_file import write_measured
from ladle.merging.family.surface import SURFACE_NAME


def calibration(fingerprint: str = "", n: int = 2, **changes: Any) -> dict[str, Any]:
    size = n * (n + 1) // 2
    response = {
        "degree": 2, "coefficients": [1.0] * size, "covariance": np.eye(size).tolist(), "quantiles": [0.0, 1.0, 2.0],
        "explained": 0.9,
    }  # fmt: skip
    names = ["positive", "simple", "concise"][:n]
    return {
        "fingerprint": fingerprint, "steering": {"method": "bone_soup"}, "sampling": {"temperature": 0.8},
        "answers": 100, "responses": {name: dict(response) for name in names}, **changes,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_family(tmp_path, seed=fresh_seed() % 1000, n=2)


def write(root: Path, document: Any) -> None:
    (root / CALIBRATION_NAME).write_text(document if isinstance(document, str) else json.dumps(document))


def flip_a_bit(member: Path) -> None:
    (file,) = member.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def own(root: Path) -> str:
    return calibrated_on(load_manifest(root), root, "bone_soup")


def test_a_family_knows_its_calibration_until_its_members_change(root: Path) -> None:
    assert load_family(root).calibration is None
    write(root, calibration(own(root)))
    found = load_family(root).calibration
    assert found is not None and found.objectives == ("positive", "simple")
    write_measured(found, root / CALIBRATION_NAME)
    assert load_family(root).calibration == found
    folders = {folder.name for folder in weighed_folders(load_manifest(root), root)}
    other = calibration(own(root), steering={"method": "fitted_soup"})
    write(root, other)
    assert load_family(root).calibration is None, "its coefficients come from a surface, and there is none"
    write_hill_surface(root)
    write(root, other | {"fingerprint": calibrated_on(load_manifest(root), root, "fitted_soup")})
    assert load_family(root).calibration is not None
    flip_a_bit(root / "adapters" / "only-positive")
    assert load_family(root).calibration is not None, "what the surface does not merge plays no part"
    (root / SURFACE_NAME).write_text((root / SURFACE_NAME).read_text() + " ")
    assert load_family(root).calibration is None, "another fit gives other coefficients"
    write(root, calibration(own(root)))
    assert load_family(root).calibration is not None
    flip_a_bit(next(path.parent for path in root.rglob("*.safetensors") if path.parent.name in folders))
    assert load_family(root).calibration is None


def test_a_calibration_of_fitted_coefficients_is_of_the_members_that_they_merge(root: Path) -> None:
    write_hill_surface(root)
    manifest = load_manifest(root)
    before = calibrated_on(manifest, root, "fitted_soup")
    for member in json.loads((root / SURFACE_NAME).read_text())["members"]:
        flip_a_bit(root / "adapters" / member)
        after = calibrated_on(manifest, root, "fitted_soup")
        assert after != before
        before = after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": "many"}, "answers"),
        ({"extra": 1}, "extra"),
        ({"steering": {}}, "steering.method: missing"),
        ({"responses": {}}, "need positive, simple"),
    ],
)
def test_what_makes_no_calibration_is_named(root: Path, changes: dict[str, Any], words: str) -> None:
    write(root, calibration(own(root), **changes))
    with pytest.raises(FamilyError, match=words) as told:
        load_family(root)
    assert CALIBRATION_NAME in str(told.value)


def test_sizes_and_order_are_checked(root: Path) -> None:
    for key, value, words in (
        ("degree", 4, "degree"),
        ("degree", 3, "need 4 coefficients"),
        ("coefficients", [1.0], "need 3 coefficients"),
        ("covariance", [[1.0]], "need 3 coefficients"),
        ("quantiles", [1.0, 0.0], "ascending"),
        ("quantiles", [1.0], "two or more"),
    ):
        document = calibration(own(root))
        document["responses"]["simple"][key] = value
        write(root, document)
        with pytest.raises(FamilyError, match=words):
            load_family(root)
    write(root, "{")
    with pytest.raises(FamilyError, match="JSON"):
        load_family(root)


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_basis_is_every_polynomial_on_the_simplex(n: int, degree: int) -> None:
    random = np.random.default_rng(fresh_seed())
    weights = random.dirichlet(np.ones(n), size=60)
    values = weights @ random.normal(size=n) + random.normal()
    values += np.einsum("pi,ij,pj->p", weights, random.normal(size=(n, n)), weights)
    if degree == 3:
        values += np.einsum("pi,pj,pk,ijk->p", weights, weights, weights, random.normal(size=(n, n, n)))
    rows = basis(weights, degree)
    fitted = np.linalg.lstsq(rows, values, rcond=None)[0]
    np.testing.assert_allclose(rows @ fitted, values, atol=1e-9)
    assert rows.shape[1] == basis_size(n, degree) == np.linalg.matrix_rank(rows)
    assert basis(np.ones((1, 1)), degree).shape == (1, basis_size(1, degree))


def test_quantiles_count_what_lies_below() -> None:
    random = np.random.default_rng(fresh_seed())
    sample = random.normal(size=20001)
    quantiles = np.quantile(sample, np.linspace(0, 1, 101)).tolist()
    for value in random.normal(size=5):
        assert quantile_of(np.array([value]), quantiles)[0] == pytest.approx((sample < value).mean(), abs=0.01)
    assert quantile_of(np.array([-99.0, 99.0]), quantiles).tolist() == [0.0, 1.0]
    # Half of the answers have the reward 3: it stands in their middle.
    assert quantile_of(np.array([3.0]), [0, 1, 3, 3, 3, 4, 5]) == pytest.approx(0.5)


def test_rewards_and_their_errors() -> None:
    document = calibration(n=3)
    document["responses"]["simple"] |= {"coefficients": [1, 2, 3, 4, 5, 6], "covariance": np.diag(range(6)).tolist()}
    found = Calibration.model_validate(document)
    weights = np.array([[0.5, 0.3, 0.2]])
    assert found.rewards(weights)[0, 1] == pytest.approx(0.5 + 0.6 + 0.6 + 4 * 0.15 + 5 * 0.1 + 6 * 0.06)
    variance = 1 * 0.3**2 + 2 * 0.2**2 + 3 * 0.15**2 + 4 * 0.1**2 + 5 * 0.06**2
    assert found.deviations(weights)[0, 1] == pytest.approx(variance**0.5)
