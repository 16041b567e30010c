"""``fitted_soup``: a merge by coefficients that a response surface speaks for."""

import numpy as np
import pytest
from seeds import fresh_seed
from tiny_models import write_family

from ladle.benchmarks.faults.hill_surface import write_hill_surface
from ladle.guidance.plan import Steering
from ladle.guidance.registry import available, default_method, resolve, usable_by_name
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = write_family(tmp_path_factory.mktemp("fitted"), seed=fresh_seed() % 1000, n=2)
    write_hill_surface(root)
    return load_family(root)


def test_coefficients_are_the_surface_s(fitted: Family) -> None:
    assert fitted.surface is not None and default_method(fitted) == "fitted_soup"
    weight = float(np.random.default_rng(fresh_seed()).uniform())
    plan = resolve(fitted, Steering("fitted_soup", {"positive": weight, "simple": 1 - weight}))
    assert plan.coefficients is not None and len(plan.sources) == 1
    expected = fitted.surface.best([weight, 1 - weight])
    assert plan.coefficients.as_dict() == dict(zip(fitted.surface.members, expected, strict=True))


def test_it_is_a_merging_method_with_their_options(fitted: Family) -> None:
    mix = {"positive": 0.5, "simple": 0.5}
    plain = resolve(fitted, Steering("fitted_soup", mix)).coefficients
    double = resolve(fitted, Steering("fitted_soup", mix, strength=2.0)).coefficients
    none = resolve(fitted, Steering("fitted_soup", mix, strength=0.0)).sources[0]
    assert plain is not None and double is not None
    np.testing.assert_allclose(double.values, 2 * np.array(plain.values))
    assert dict(none.coefficients) == {}
    stated = resolve(fitted, Steering("fitted_soup", coefficients={"only-simple": 1.0})).coefficients
    assert stated is not None and stated.as_dict() == {"only-simple": 1.0}
    for option, value in (("kl_budget", 0.1), ("candidates", 5)):
        with pytest.raises(InputError, match="not supported by method fitted_soup"):
            resolve(fitted, Steering("fitted_soup", mix, **{option: value}))
    with pytest.raises(InputError, match="steering.preference"):
        resolve(fitted, Steering("fitted_soup"))


def test_without_a_surface_it_says_what_makes_one(family: Family) -> None:
    ready, reason = available(family)["fitted_soup"]
    assert not ready and "ladle fit" in reason and "fitted_soup" not in usable_by_name(family)
    with pytest.raises(InputError, match="ladle fit"):
        resolve(family, Steering("fitted_soup", {"positive": 1.0}))
