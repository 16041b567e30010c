import math
from typing import Any

import pytest

from ladle.guidance.plan import Steering
from ladle.merging.errors import InputError


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
        "coefficients": {"m": 1.0},
        "terms": [],
        "normalize": "sum",
        "trace": True,
    }
    steering = Steering.parse(raw)
    assert {key: getattr(steering, key) for key in raw} == raw
    assert isinstance(steering.strength, float)


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
