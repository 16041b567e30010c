"""From wanted rewards to a preference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import fresh_seed
from tiny_models import write_family

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.guidance.target import TOLERANCE, reach, reachable
from ladle.merging.exceptions import InputError
from ladle.merging.family.calibration import Calibration
from ladle.merging.family.family import Family, load_family

NAMES = ("positive", "simple", "concise")


def calibration(random: np.random.Generator, n: int = 3, **steering: Any) -> Calibration:
    """Every reward rises with its own weight, by different amounts and with a bend."""
    size = n * (n + 1) // 2
    responses = {}
    for place, name in enumerate(NAMES[:n]):
        coefficients = random.uniform(-0.3, 0.3, size)
        coefficients[place] += 3.0
        responses[name] = {
            "coefficients": coefficients.tolist(),
            "degree": 2,
            "covariance": (0.01 * np.eye(size)).tolist(),
            "quantiles": np.linspace(-3.0, 5.0, 101).tolist(),
            "explained": 1.0,
        }
    return Calibration.model_validate(
        {
            "fingerprint": "f", "steering": {"method": "bone_soup", **steering}, "sampling": {}, "answers": 10,
            "responses": responses,
        }
    )  # fmt: skip


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(fresh_seed())


@pytest.fixture
def family(tmp_path: Path, random: np.random.Generator) -> Family:
    family = load_family(write_family(tmp_path, seed=int(random.integers(1000)), n=2))
    return replace(family, calibration=calibration(random, 2))


@pytest.mark.parametrize("n", [2, 3])
def test_what_a_preference_gets_leads_back_to_it(random: np.random.Generator, n: int) -> None:
    for _ in range(20):
        found = calibration(random, n)
        weights = random.dirichlet(np.ones(n))
        wanted = found.quantiles(weights[None])[0]
        reached = reach(found, dict(zip(NAMES, wanted.tolist(), strict=False)))
        np.testing.assert_allclose(list(reached.preference.values()), weights, atol=0.01)
        assert sum(reached.preference.values()) == pytest.approx(1.0)
        for (name, outcome), goal in zip(reached.outcomes.items(), wanted.tolist(), strict=True):
            assert outcome.wanted == goal and abs(outcome.quantile - goal) < 0.005
            assert outcome.low < outcome.quantile < outcome.high
            place = NAMES.index(name)
            expected = found.rewards(np.array([list(reached.preference.values())]))[0, place]
            assert outcome.reward == pytest.approx(expected)


def test_free_objectives_get_what_is_most_even(random: np.random.Generator) -> None:
    found = calibration(random, 3)
    wanted = float(found.quantiles(np.array([[0.5, 0.25, 0.25]]))[0, 0])
    reached = reach(found, {"positive": wanted})
    assert reached.outcomes["simple"].wanted is None
    assert abs(reached.outcomes["positive"].quantile - wanted) < 0.005
    # Rewards bend a little, so that the most even of the preferences that fit is not quite half and two quarters.
    np.testing.assert_allclose(list(reached.preference.values()), [0.5, 0.25, 0.25], atol=0.08)


def test_what_nothing_reaches_is_said_with_what_comes_nearest(random: np.random.Generator) -> None:
    found = calibration(random, 3)
    low, high = reachable(found)["positive"]
    assert 0 <= low < high <= 1
    with pytest.raises(InputError, match=r"steering\.target.*nearest is .*'positive'.*with preference") as told:
        reach(found, {"positive": min(1.0, high + 5 * TOLERANCE)})
    assert told.value.field == "steering.target"
    with pytest.raises(InputError, match="nearest"):
        reach(found, {name: ends[1] for name, ends in reachable(found).items()})
    reach(found, {"positive": high})
    reach(found, {"positive": low})


def test_a_plan_says_what_was_wanted_and_found(family: Family) -> None:
    assert family.calibration is not None
    wanted = float(family.calibration.quantiles(np.array([[0.25, 0.75]]))[0, 0])
    plan = resolve(family, Steering.parse({"target": {"positive": wanted}}))
    assert plan.preference is not None and plan.target is not None
    assert plan.preference.as_dict()["positive"] == pytest.approx(0.25, abs=0.01)
    stated = resolve(family, Steering.parse({"preference": plan.preference.as_dict()}))
    assert replace(plan, target=None, warnings=()) == replace(stated, warnings=())
    for more in ({"method": "bone_soup"}, {"trace": True}):
        assert resolve(family, Steering.parse({"target": {"positive": wanted}, **more})).target == plan.target


@pytest.mark.parametrize(
    ("steering", "field", "words"),
    [
        ({"target": {"wit": 0.5}}, "steering.target.wit", "positive, simple"),
        ({"target": {"positive": 1.5}}, "steering.target.positive", "from 0 to 1"),
        ({"target": {"positive": True}}, "steering.target.positive", "from 0 to 1"),
        ({"target": {}}, "steering.target", "one of positive, simple or more"),
        ({"target": {"positive": 0.5}, "preference": {"positive": 1}}, "steering.target", "beside steering.preference"),
        ({"target": {"positive": 0.5}, "coefficients": {}}, "steering.target", "beside steering.coefficients"),
        ({"target": {"positive": 0.5}, "method": "rewarded_soup"}, "steering.target", "only with method bone_soup"),
        ({"target": {"positive": 0.5}, "strength": 2}, "steering.target", "only with method bone_soup"),
    ],
)
def test_what_is_refused(family: Family, steering: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as told:
        resolve(family, Steering.parse(steering))
    assert told.value.field == field


def test_options_that_were_calibrated_come_with_it(family: Family, random: np.random.Generator) -> None:
    strong = replace(family, calibration=calibration(random, 2, strength=1.25))
    assert strong.calibration is not None
    low, high = reachable(strong.calibration)["positive"]
    target = {"target": {"positive": (low + high) / 2}}
    plan = resolve(strong, Steering.parse(target))
    assert plan.coefficients is not None and plan.coefficients.l1 > 1.0
    assert resolve(strong, Steering.parse({**target, "method": "bone_soup", "strength": 1.25})) == plan
    with pytest.raises(InputError, match=r"method bone_soup, strength 1\.25"):
        resolve(strong, Steering.parse({**target, "strength": 1.5}))


def test_a_family_that_was_not_calibrated_says_how(family: Family) -> None:
    with pytest.raises(InputError, match="ladle calibrate"):
        resolve(replace(family, calibration=None), Steering.parse({"target": {"positive": 0.5}}))
