"""The measurements of ranked and searched answers, end to end: their figures mean nothing on a tiny model."""

import random
from pathlib import Path

import pytest
from guided_requests import World
from tiny_engine import family_of

from ladle.benchmarks.command import STEP_BENCHMARKS
from ladle.benchmarks.led import several
from ladle.merging.family.family import Family


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "TOKENS", 5)
    monkeypatch.setattr(several, "PROMPT_TOKENS", 9)
    monkeypatch.setattr(several, "QUESTION_TOKENS", 4)
    monkeypatch.setattr(several, "BURST", 1)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return World(tmp_path_factory.mktemp("several"), random.Random(1), pblora=False).family


@pytest.mark.parametrize("part", ["rank", "search"])
def test_all_that_the_family_has_is_compared_with_plain_answers(family: Family, part: str) -> None:
    benchmark = STEP_BENCHMARKS[part]
    assert benchmark.module == "led.several"
    rows = list(getattr(several, benchmark.function)(family, "float32", [1, 2], 1))
    assert [row["batch"] for row in rows] == [1, 2]
    ways = ["likelihood", "explicit", "implicit", "ask"] if part == "rank" else list(several.SEARCHES)
    for row in rows:
        assert [name.removesuffix("_over_plain") for name in row if name.endswith("_over_plain")] == ways
        assert all(float(str(row[f"{name}_ms"])) > 0 for name in ways)
    if part == "search":
        assert all(1 <= float(str(row["explicit_4x16_drawn"])) <= 4 for row in rows)


def test_a_family_without_values_is_asked_for_what_it_has(tmp_path: Path) -> None:
    (row,) = several.rank(family_of(tmp_path), "float32", [1], 1)
    assert [name for name in row if name.endswith("_over_plain")] == ["likelihood_over_plain", "ask_over_plain"]
