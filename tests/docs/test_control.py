"""What the record of control says of the committed sweeps follows from their samples, and the page of conclusions from
the record."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from ladle.guidance.registry import available
from ladle.merging.family.calibration import CALIBRATION_NAME
from ladle.merging.family.family import load_family
from ladle.merging.family.surface import SURFACE_NAME
from ladle.recipes.commands.calibrate import command as calibrate
from ladle.recipes.commands.fit import command as fit
from ladle.recipes.sweeps.join import join
from ladle.recipes.sweeps.summary import RewardTable, summarise

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "studies" / "control"
DOCUMENT = RESULTS / "README.md"
COMPARISONS = sorted(file.parent.name for file in RESULTS.glob("*/tables.md"))
JOINED = "joined.json"
"""Of a comparison that is not of a sweep beside it: FOLDER or NAME=FOLDER of every sweep, as for ``ladle compare``."""


def sweeps(comparison: str) -> list[tuple[str, Path]]:
    file = RESULTS / comparison / JOINED
    named = json.loads(file.read_text(encoding="utf-8")) if file.exists() else [comparison]
    parts = [one.rpartition("=") for one in named]
    return [(name, RESULTS / folder) for name, _, folder in parts]


@pytest.mark.parametrize("split", COMPARISONS)
def test_measures_follow_from_the_samples(split: str) -> None:
    objectives, settings, samples = join(sweeps(split))
    # Few resamples: only what does not depend on them is compared.
    summary = summarise(RewardTable(settings, samples, objectives), 2, 0)
    with (RESULTS / split / "methods.csv").open(newline="", encoding="utf-8") as file:
        committed = {row["method"]: row for row in csv.DictReader(file)}
    assert committed.keys() == summary["methods"].keys()
    for method, measures in summary["methods"].items():
        for name, figure in measures.items():
            if figure["value"] is not None:
                assert float(committed[method][name]) == pytest.approx(figure["value"], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("split", COMPARISONS)
def test_the_document_has_every_row(split: str) -> None:
    """Those of one sweep as a table; joined ones share rows with others, and rows of several may stand in one table."""
    methods = (RESULTS / split / "tables.md").read_text(encoding="utf-8").split("\n\n")[0].strip()
    document = DOCUMENT.read_text(encoding="utf-8")
    if not (RESULTS / split / JOINED).exists():
        assert methods in document
    missing = set(methods.splitlines()) - set(document.splitlines())
    assert len(methods.splitlines()) > 2 and not missing, sorted(missing)


def test_the_conclusions_have_rows_of_the_record() -> None:
    page, record = ((file).read_text(encoding="utf-8") for file in (ROOT / "docs" / "control.md", DOCUMENT))
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) >= 6 and set(rows) <= set(record.splitlines())


def test_the_family_of_the_comparison_loads() -> None:
    family = load_family("demo")
    assert family.objectives == ("positive", "simple", "concise") and len(family.backbones) == 3
    ready = {name for name, (usable, _) in available(family).items() if usable}
    assert {"bone_soup", "fitted_soup", "rewarded_soup", "mage", "amplify", "mod", "genarm"} <= ready


def again(command: Callable[..., None], name: str, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command of the document writes into a copy of the family, and the file that is committed."""
    stated = re.search(rf"^ladle {name} (.*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert stated
    words = shlex.split(stated[1], comments=True)
    root, file = tmp_path / "demo", {"fit": SURFACE_NAME, "calibrate": CALIBRATION_NAME}[name]
    shutil.copytree(ROOT / words[0], root)
    committed = json.loads((root / file).read_text(encoding="utf-8"))
    (root / file).unlink()
    app = Typer()
    app.command()(command)
    arguments = [str(ROOT / word) if word.startswith("studies/") else word for word in words[1:]]
    said = CliRunner().invoke(app, [str(root), *arguments])
    assert said.exit_code == 0, said.output
    return json.loads((root / file).read_text(encoding="utf-8")), committed


def test_the_family_s_surface_follows_from_the_samples(tmp_path: Path) -> None:
    fitted, committed = again(fit, "fit", tmp_path)
    assert fitted.keys() == committed.keys() and fitted["answers"] == committed["answers"]
    for name, weights in committed["rewards"].items():
        assert fitted["rewards"][name] == pytest.approx(weights, rel=1e-6, abs=1e-6)
    assert fitted["fingerprint"] == committed["fingerprint"]


def test_the_family_s_calibration_follows_from_the_samples(tmp_path: Path) -> None:
    fitted, committed = again(calibrate, "calibrate", tmp_path)
    assert fitted.keys() == committed.keys() and fitted["steering"] == committed["steering"]
    for name, response in committed["responses"].items():
        assert fitted["responses"][name]["degree"] == response["degree"]
        assert fitted["responses"][name]["coefficients"] == pytest.approx(response["coefficients"], rel=1e-5, abs=1e-5)
    assert fitted["fingerprint"] == committed["fingerprint"]
    assert load_family("demo").calibration is not None
