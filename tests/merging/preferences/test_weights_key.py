import math

import numpy as np
import pytest

from ladle.merging.preferences.coefficients import explicit
from ladle.merging.preferences.weights_key import WeightsKey


def test_noise_order_and_zeros_do_not_change_the_identity() -> None:
    key = WeightsKey.of("rev", {"a": 0.7, "b": 0.3, "c": 0.0})
    assert key == WeightsKey.of("rev", {"b": 0.3 + 1e-9, "a": 0.7 - 1e-9})
    assert hash(key) == hash(WeightsKey.of("rev", {"b": 0.3, "a": 0.7}))
    assert key == WeightsKey.of("rev", explicit({"a": 0.7, "b": 0.3}, ["a", "b"]))
    assert WeightsKey.of("rev", {"a": 1e-8}).terms == ()


def test_coefficients_come_back_within_half_a_step_and_are_stable(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=8)
    key = WeightsKey.of("rev", {f"m{i}": float(value) for i, value in enumerate(values)})
    for i, value in enumerate(values):
        assert abs(key.coefficients()[f"m{i}"] - value) <= 2.0**-21
    assert WeightsKey.of("rev", key.coefficients()) == key


def test_digests_tell_everything_apart() -> None:
    keys = [
        WeightsKey.of("rev", {}),
        WeightsKey.of("rev", {"a": 1.0}),
        WeightsKey.of("rev", {"a": -1.0}),
        WeightsKey.of("rev", {"b": 1.0}),
        WeightsKey.of("other", {"a": 1.0}),
        WeightsKey.of("rev", {"a": 1.0, "b": 1.0}),
        # The same text when names and numbers are strung together without lengths.
        WeightsKey("rev", (("a", 11), ("b", 1))),
        WeightsKey("rev", (("a", 1), ("1b", 1))),
        WeightsKey("reva", (("11b", 1),)),
    ]
    assert len({key.digest() for key in keys}) == len(keys)
    assert all(len(key.digest()) == 32 for key in keys)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_key_for_what_is_not_finite(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        WeightsKey.of("rev", {"a": value})
