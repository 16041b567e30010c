"""The measurement of watching, end to end: its figures mean nothing on a tiny model."""

import random
from pathlib import Path

import pytest
from guided_requests import World
from tiny_engine import family_of

from ladle.benchmarks import monitor


def test_every_method_and_batch_has_a_row(tmp_path: Path) -> None:
    world = World(tmp_path, random.Random(1), pblora=False)
    rows = list(monitor.run(world.family, "float32", [2], 1))
    assert [(row["method"], row["batch"]) for row in rows] == [(method, 2) for method in monitor.METHODS]
    assert all(float(str(row["watched_ms"])) > 0 for row in rows)


def test_a_family_without_an_explicit_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an explicit value is needed"):
        next(monitor.run(family_of(tmp_path), "float32", [1], 2))
