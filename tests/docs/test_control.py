"""What docs/control.md says of the committed sweeps follows from their samples."""

import csv
from pathlib import Path

import pytest

from ladle.guidance.registry import available
from ladle.merging.family import load_family
from ladle.recipes.sweep_join import join
from ladle.recipes.sweep_summary import Table, summarise

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "control"
DOCUMENT = ROOT / "docs" / "control.md"
SWEEPS = sorted(file.parent.name for file in RESULTS.glob("*/sweep.json"))


@pytest.mark.parametrize("split", SWEEPS)
def test_measures_follow_from_the_samples(split: str) -> None:
    objectives, settings, samples = join([("", RESULTS / split)])
    # Few resamples: only what does not depend on them is compared.
    summary = summarise(Table(settings, samples, objectives), 2, 0)
    with (RESULTS / split / "methods.csv").open(newline="", encoding="utf-8") as file:
        committed = {row["method"]: row for row in csv.DictReader(file)}
    assert committed.keys() == summary["methods"].keys()
    for method, measures in summary["methods"].items():
        for name, figure in measures.items():
            if figure["value"] is not None:
                assert float(committed[method][name]) == pytest.approx(figure["value"], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("split", SWEEPS)
def test_the_document_has_the_tables(split: str) -> None:
    methods = (RESULTS / split / "tables.md").read_text(encoding="utf-8").split("\n\n")[0]
    assert methods.strip() in DOCUMENT.read_text(encoding="utf-8")


def test_the_family_of_the_comparison_loads() -> None:
    family = load_family("trio")
    assert family.objectives == ("positive", "simple", "concise") and len(family.backbones) == 3
    ready = {name for name, (usable, _) in available(family).items() if usable}
    assert {"bone_soup", "rewarded_soup", "mage", "amplify", "mod", "genarm"} <= ready
