"""Norms of merged deltas against dense ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.merging.exceptions import InputError
from ladle.merging.members.adapter import LowRank, LowRankMember
from ladle.merging.preferences.coefficients import explicit
from ladle.merging.preferences.delta_norms import DeltaNorms

SHAPES = {"up": (7, 5), "down": (5, 7), "q": (6, 6)}
PLACES = {"a": ["up", "down", "q"], "b": ["up", "q"], "c": ["down"]}


def members(seed: int) -> dict[str, LowRankMember]:
    """Members of different modules, ranks and scales."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, places in PLACES.items():
        modules = {}
        for place in places:
            (out, into), rank = SHAPES[place], int(rng.integers(1, 4))
            a, b = torch.tensor(rng.normal(size=(rank, into))), torch.tensor(rng.normal(size=(out, rank)))
            modules[place] = LowRank(a.float(), b.float(), float(rng.uniform(0.5, 2)))
        found[name] = LowRankMember(name, Path(name), modules)
    return found


def dense(found: dict[str, LowRankMember], coefficients: dict[str, float]) -> float:
    total = 0.0
    for place, shape in SHAPES.items():
        merged = torch.zeros(shape, dtype=torch.float64)
        for name, value in coefficients.items():
            if place in found[name].modules:
                merged += value * found[name].modules[place].delta(torch.float64)
        total += float(merged.square().sum())
    return float(np.sqrt(total))


def test_norms_are_those_of_the_dense_deltas(seed: int) -> None:
    found = members(seed)
    norms = DeltaNorms(found)
    drawn = np.random.default_rng(seed + 1).normal(size=3).tolist()
    coefficients = dict(zip(found, drawn, strict=True))
    assert norms.merged(coefficients) == pytest.approx(dense(found, coefficients), rel=1e-9)
    lengths = {name: dense(found, {name: 1.0}) for name in found}
    weights = np.abs(drawn) / np.abs(drawn).sum()
    assert norms.mean(coefficients) == pytest.approx(float(weights @ list(lengths.values())), rel=1e-9)
    assert norms.merged({}) == norms.mean({}) == 0.0


def test_coefficients_that_keep_the_norm(seed: int) -> None:
    found = members(seed)
    norms = DeltaNorms(found)
    drawn = np.random.default_rng(seed + 1).normal(size=3).tolist()
    given = explicit(dict(zip(found, drawn, strict=True)), list(found))
    kept = given.keeping_norm(norms, "normalize")
    assert norms.merged(kept.as_dict()) == pytest.approx(norms.mean(kept.as_dict()), rel=1e-9)
    # The direction stays, and whatever scale the coefficients had does not matter.
    np.testing.assert_allclose(np.divide(kept.values, given.values), kept.values[0] / given.values[0])
    assert given.scaled(3.0).keeping_norm(norms, "normalize").values == pytest.approx(kept.values)
    assert kept.base_share == pytest.approx(1 - sum(kept.values))
    # One member alone is what it is, at weight 1.
    alone = explicit({"a": 0.25, "b": 0.0}, list(found)).keeping_norm(norms, "normalize")
    assert alone.as_dict() == {"a": pytest.approx(1.0), "b": 0.0}


def test_no_norm_to_keep_is_said(seed: int) -> None:
    found = members(seed)
    twin = found | {"d": LowRankMember("d", Path("d"), found["a"].modules)}
    for given, reason in (
        ({"a": 1.0, "d": -1.0}, "cancel"),
        ({"a": 0.0}, "cancel"),
        ({"a": 1.0, "e": 1.0}, "e is a full"),
    ):
        with pytest.raises(InputError, match=rf"^field.*{reason}"):
            explicit(given, [*twin, "e"]).keeping_norm(DeltaNorms(twin), "field")
