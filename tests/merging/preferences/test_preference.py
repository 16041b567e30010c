import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ladle.merging.exceptions import InputError
from ladle.merging.preferences.preference import Preference

OBJECTIVES = ("positive", "simple", "concise")
weights = st.dictionaries(st.sampled_from(OBJECTIVES), st.floats(0, 1e300, allow_subnormal=True), min_size=1).filter(
    lambda raw: max(raw.values()) > 0
)


@given(weights)
def test_any_valid_weights_end_on_the_simplex_in_proportion(raw: dict[str, float]) -> None:
    preference = Preference.of(raw, OBJECTIVES)
    vector = preference.vector()
    assert vector.dtype == np.float64 and vector.shape == (3,)
    assert math.isclose(math.fsum(vector), 1.0, rel_tol=1e-12) and (vector >= 0).all()
    largest = max(raw, key=lambda name: raw[name])
    for name, weight in preference.weights:
        ratio = raw.get(name, 0.0) / raw[largest]
        assert math.isclose(weight, preference.as_dict()[largest] * ratio, rel_tol=1e-9, abs_tol=1e-300)


def test_order_is_the_familys_and_missing_objectives_are_zero() -> None:
    preference = Preference.of({"concise": 0.25, "positive": 0.75}, OBJECTIVES)
    assert preference.weights == (("positive", 0.75), ("simple", 0.0), ("concise", 0.25))
    assert not preference.normalised


def test_it_says_when_it_normalised() -> None:
    assert Preference.of({"simple": 3, "concise": 1}, OBJECTIVES) == Preference(
        (("positive", 0.0), ("simple", 0.75), ("concise", 0.25)), normalised=True
    )
    assert not Preference.of({"positive": 0.1, "simple": 0.2, "concise": 0.7}, OBJECTIVES).normalised


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"wit": 1.0}, "preference.wit"),
        ({"positive": -0.1, "simple": 1}, "preference.positive"),
        ({"positive": math.nan}, "preference.positive"),
        ({"positive": math.inf}, "preference.positive"),
        ({"positive": 10**400}, "preference.positive"),
        ({"positive": "1"}, "preference.positive"),
        ({"positive": True}, "preference.positive"),
        ({"positive": None}, "preference.positive"),
        ({"positive": 0.0, "simple": 0}, "preference"),
        ({}, "preference"),
        ([0.5, 0.5], "preference"),
    ],
)
def test_bad_weights_are_refused_by_name(raw: dict[str, float], field: str) -> None:
    with pytest.raises(InputError) as caught:
        Preference.of(raw, OBJECTIVES)
    assert caught.value.field == field
    assert field in str(caught.value) and "allowed" in str(caught.value)


def test_the_field_prefix_is_the_callers() -> None:
    with pytest.raises(InputError) as caught:
        Preference.of({"wit": 1}, OBJECTIVES, field="steering.preference")
    assert caught.value.field == "steering.preference.wit"
    assert "positive, simple, concise" in caught.value.allowed
