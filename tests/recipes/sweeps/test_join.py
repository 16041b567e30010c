"""``ladle compare``: finished sweeps side by side."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import fresh_seed
from typer import Typer
from typer.testing import CliRunner, Result

from ladle.merging.preferences.simplex import grid
from ladle.recipes.commands.compare import command
from ladle.recipes.sweeps.grid import ORACLES, settings_of
from ladle.recipes.sweeps.join import join
from ladle.recipes.sweeps.store import Sample, SampleStore
from ladle.recipes.sweeps.summary import RewardTable, summarise

OBJECTIVES = ["positive", "concise"]
TEXT = "a text with five words"


def run(*arguments: object) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_sweep(
    folder: Path,
    draw: np.random.Generator,
    methods: list[str],
    gain: float,
    oracles: dict[str, list[float]] | None = None,
    **asked: Any,
) -> Path:
    settings = settings_of(methods, grid(2, 2), oracles)
    facts = {
        "family": "tiny", "objectives": OBJECTIVES, "settings": [setting.key for setting in settings],
        "prompts": ["p"] * 6, "answers": 2, "seed": 0, "sampling": {}, "rewards": [], **asked,
    }  # fmt: skip
    store = SampleStore(folder, facts, OBJECTIVES)
    for setting in settings:
        for prompt in range(6):
            for number in range(2):
                values = draw.normal(size=2) + gain * np.array(setting.weights or (0.0, 0.0))
                rewards = dict(zip(OBJECTIVES, values.tolist(), strict=True))
                store.add(Sample(setting.key, prompt, number, 7, TEXT, 6, "stop", -3.0, rewards))
    return folder


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(fresh_seed())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_two_sweeps_are_compared_on_the_first_ones_base(tmp_path: Path, draw: np.random.Generator) -> None:
    weak = write_sweep(tmp_path / "weak", draw, ["bone_soup", "mage"], 1.0)
    strong = write_sweep(tmp_path / "strong", draw, ["bone_soup"], 9.0)
    said = run(weak, f"more={strong}", "--out", tmp_path / "out", "--draws", 100, "--json")
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout.strip().splitlines()[-1])
    assert list(summary["methods"]) == ["bone_soup", "mage", "more/bone_soup"]
    assert [setting["method"] for setting in summary["settings"]].count("base") == 1
    gaps = {(row["method"], row["minus"]): row["hypervolume"] for row in summary["differences"]}
    assert gaps["more/bone_soup", "bone_soup"]["low"] > 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"summary.json", "front.png", "front.svg", "settings.csv", "methods.csv", "differences.csv"} <= written
    first, second = (tmp_path / "out" / "tables.md").read_text().split("\n\n")
    assert [line.split(" | ")[0] for line in first.splitlines()[2:]] == [f"| {name}" for name in summary["methods"]]
    assert len(second.splitlines()) == 2 + 1 + 3 * 3
    sound = summary["methods"]["mage"]["hypervolume_sound"]
    assert f"{sound['value']:.2f} [{sound['low']:.2f}, {sound['high']:.2f}]" in first or sound["value"] >= 10
    table = rows(tmp_path / "out" / "settings.csv")
    assert len(table) == 1 + 3 * 3 and table[0]["method"] == "base" and table[0]["weight_positive"] == ""
    for row, setting in zip(table, summary["settings"], strict=True):
        assert float(row["positive"]) == pytest.approx(setting["positive"]["mean"], rel=1e-5, abs=1e-9)
        assert float(row["concise_z"]) == pytest.approx(setting["concise"]["z"], rel=1e-5, abs=1e-9)
        assert float(row["degenerate"]) == 0.0
    methods = {row["method"]: row for row in rows(tmp_path / "out" / "methods.csv")}
    figure = summary["methods"]["mage"]["hypervolume_sound"]
    assert float(methods["mage"]["hypervolume_sound"]) == pytest.approx(figure["value"], rel=1e-5)
    assert float(methods["mage"]["hypervolume_sound_low"]) == pytest.approx(figure["low"], rel=1e-5)
    assert {row["minus"] for row in rows(tmp_path / "out" / "differences.csv")} == {"bone_soup", "mage"}


def test_what_cannot_be_compared_is_said(tmp_path: Path, draw: np.random.Generator) -> None:
    one = write_sweep(tmp_path / "one", draw, ["bone_soup"], 1.0)
    two = write_sweep(tmp_path / "two", draw, ["bone_soup"], 1.0)
    other = write_sweep(tmp_path / "other", draw, ["mod"], 1.0, seed=5)
    for arguments, words in (
        ([one, two], "give the sweeps names"),
        ([one, f"b={other}"], "seed: not what the sweep in"),
        ([tmp_path / "none"], "folder of a sweep"),
    ):
        said = run(*arguments, "--out", tmp_path / "out")
        assert said.exit_code == 1 and words in " ".join(said.output.split()) and "Traceback" not in said.output


def test_oracles_stand_at_the_preferences_they_were_trained_for() -> None:
    points = grid(2, 2)
    settings = settings_of(["bone_soup", ORACLES], points, {"oracle-even": [1.0, 1.0], "oracle-more": [0.75, 0.25]})
    found = [setting for setting in settings if setting.label == ORACLES]
    assert [setting.weights for setting in found] == [(0.5, 0.5), (0.75, 0.25)]
    assert found[1].request(OBJECTIVES) == {
        "method": "bone_soup", "coefficients": {"oracle-more": 1.0},
        "preference": {"positive": 0.75, "concise": 0.25},
    }  # fmt: skip
    # What an oracle is to be compared with is asked for where the oracle is, and once where the grid has that point.
    others = [setting.weights for setting in settings if setting.label == "bone_soup"]
    assert others == [*points, (0.75, 0.25)]
    assert [setting.weights for setting in settings_of(["bone_soup"], points)[1:]] == points
    with pytest.raises(ValueError, match="no oracles"):
        settings_of([ORACLES], points)


def test_methods_are_compared_at_the_preferences_that_both_have(tmp_path: Path, draw: np.random.Generator) -> None:
    oracles = {"oracle-more": [0.75, 0.25], "oracle-even": [1.0, 1.0]}
    sweep = write_sweep(tmp_path / "sweep", draw, ["bone_soup", ORACLES, "mage"], 1.0, oracles=oracles)
    said = run(sweep, "--out", tmp_path / "out", "--draws", 100, "--json")
    assert said.exit_code == 0, said.output
    summary = json.loads(said.stdout.strip().splitlines()[-1])
    found = {(row["method"], row["minus"]): row for row in summary["differences"]}
    assert {pair: row["points"] for pair, row in found.items()} == {
        (ORACLES, "bone_soup"): 2, ("mage", "bone_soup"): 4, ("mage", ORACLES): 2,
    }  # fmt: skip

    def inner(method: str) -> float:
        """Mean mu . z at the oracles' preferences."""
        settings = [setting for setting in summary["settings"] if setting["method"] == method]
        there = [s for s in settings if s["weights"]["positive"] in (0.5, 0.75)]
        return sum(weight * s[name]["z"] for s in there for name, weight in s["weights"].items()) / len(there)

    for method, minus in ((ORACLES, "bone_soup"), ("mage", ORACLES)):
        gap = found[method, minus]["inner_product"]
        assert gap["value"] == pytest.approx(inner(method) - inner(minus)) and gap["low"] <= gap["high"]
    assert [row["points"] for row in rows(tmp_path / "out" / "differences.csv")] == ["2", "4", "2"]


def test_methods_without_a_common_preference_are_not_compared(tmp_path: Path, draw: np.random.Generator) -> None:
    sweep = write_sweep(tmp_path / "sweep", draw, ["bone_soup", "mage"], 1.0)
    objectives, settings, samples = join([("", sweep)])
    apart = [s for s in settings if not s.weights or (s.label == "mage") == (s.weights == (0.5, 0.5))]
    assert summarise(RewardTable(apart, samples, objectives), 2, 0)["differences"] == []
