import math
from dataclasses import fields
from typing import Any

import pytest

from ladle.guidance.plan import Steering
from ladle.merging.exceptions import InputError


def test_absent_and_null_take_defaults() -> None:
    assert Steering.parse(None) == Steering.parse({}) == Steering()
    assert Steering.parse({"method": None, "strength": None, "normalize": None, "trace": None}) == Steering()


def test_every_key_is_taken() -> None:
    raw = {
        "method": "mage",
        "preference": {"a": 1},
        "strength": 2,
        "value": "both",
        "combine": "ensemble",
        "candidates": 5,
        "block_length": 8,
        "coefficients": {"m": 1.0},
        "terms": [],
        "normalize": "sum",
        "trace": True,
        "negative_prompt": "",
        "divergence": "alpha",
        "alpha": 1,
        "complement": 0,
        "expert_weight": 2,
        "top_experts": 3,
        "min_stay": 8,
        "threshold": 1,
        "kl_budget": 2,
        "base": "fitted_soup",
        "target": {"a": 0.5},
        "schedule": [{}],
        "rank": {"by": "implicit", "per": "token", "keep": 2},
        "search": {"by": "explicit", "until": 16, "draws": {"entropy": [0.5, 2.0], "most": 3}, "beam": 2},
        "monitor": {"value": "v", "ask": None, "above": 0.5, "for": 2, "hold": None},
    }
    assert raw.keys() == {entry.name for entry in fields(Steering)}
    steering = Steering.parse(raw)
    assert {key: getattr(steering, key) for key in raw} == raw
    numbers = [
        getattr(steering, key) for key in ("strength", "alpha", "complement", "expert_weight", "threshold", "kl_budget")
    ]
    assert all(isinstance(number, float) for number in numbers)


def test_two_strengths() -> None:
    steering = Steering.parse({"strength": {"implicit": 2, "explicit": -0.5}})
    assert steering.strength == {"implicit": 2.0, "explicit": -0.5}
    with pytest.raises(InputError, match=r"steering\.strength.*value both"):
        steering.one_strength()
    assert Steering(strength=3.0).one_strength(2.0) == 3.0 and Steering().one_strength(2.0) == 2.0
    assert Steering(strength=0.0).one_strength(2.0) == 0.0


@pytest.mark.parametrize(
    ("strengths", "field"),
    [
        ({}, "steering.strength"),
        ({"implied": 1}, "steering.strength.implied"),
        ({"implicit": 1, "explicit": "2"}, "steering.strength.explicit"),
        ({"implicit": math.nan}, "steering.strength.implicit"),
        ({"implicit": None}, "steering.strength.implicit"),
        ({"explicit": 101}, "steering.strength.explicit"),
    ],
)
def test_bad_strengths_are_named(strengths: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        Steering.parse({"strength": strengths})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("colour", 1),
        ("method", 3),
        ("preference", [1, 2]),
        ("strength", "1"),
        ("strength", math.nan),
        ("strength", math.inf),
        ("strength", 1e9),
        ("strength", True),
        ("strength", 10**400),
        ("value", "explicitly"),
        ("value", ["implicit"]),
        ("combine", {}),
        ("candidates", 0),
        ("candidates", 1.5),
        ("candidates", True),
        ("candidates", 1025),
        ("strength", [1]),
        ("negative_prompt", 1),
        ("divergence", "kl"),
        ("divergence", ["jsd"]),
        ("alpha", 0),
        ("alpha", -1.0),
        ("alpha", math.nan),
        ("alpha", 1e9),
        ("alpha", True),
        ("complement", -0.1),
        ("complement", 101),
        ("complement", math.nan),
        ("complement", math.inf),
        ("complement", "1"),
        ("complement", True),
        ("expert_weight", 0),
        ("expert_weight", -1.0),
        ("expert_weight", 101),
        ("expert_weight", math.nan),
        ("expert_weight", False),
        ("top_experts", 0),
        ("top_experts", 2.0),
        ("top_experts", True),
        ("top_experts", "all"),
        ("kl_budget", 0),
        ("kl_budget", 100.5),
        ("kl_budget", True),
        ("min_stay", 0),
        ("min_stay", 65537),
        ("min_stay", 1.0),
        ("min_stay", True),
        ("threshold", -0.01),
        ("threshold", 1.01),
        ("threshold", math.nan),
        ("threshold", False),
        ("threshold", [0.5]),
        ("coefficients", "all"),
        ("terms", "x"),
        ("normalize", "max"),
        ("trace", 1),
    ],
)
def test_bad_keys_and_types_are_named(key: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Steering.parse({key: value})
    assert caught.value.field == f"steering.{key}"


def test_steering_must_be_an_object() -> None:
    with pytest.raises(InputError, match="steering: 'mage'"):
        Steering.parse("mage")  # type: ignore[arg-type]
