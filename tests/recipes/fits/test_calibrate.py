"""``ladle calibrate``: from a sweep's samples to the file that targets are resolved by."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from ladle.guidance.target import reach
from ladle.merging.family.calibration import CALIBRATION_NAME
from ladle.merging.family.family import load_family
from ladle.merging.preferences.simplex import grid
from ladle.recipes.commands.calibrate import command
from ladle.recipes.fits.calibrate import check
from ladle.recipes.sweeps.grid import settings_of
from ladle.recipes.sweeps.store import Sample, SampleStore, reopen
from ladle.recipes.sweeps.summary import RewardTable

OBJECTIVES = ["positive", "simple"]
STRONG = "bone_soup:strength=1.5"


def run(*arguments: object) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mean_rewards(weights: np.ndarray, strength: float) -> np.ndarray:
    """What the made-up family does: rewards that bend."""
    a, b = weights
    return strength * np.array([4 * a - 2 * a * b, 10 * b + 3 * a * b])


def write_sweep(
    folder: Path,
    random: np.random.Generator,
    points: int = 8,
    name: str = "tiny",
    methods: Sequence[str] = ("bone_soup", STRONG),
) -> None:
    settings = settings_of(methods, grid(2, points))
    facts = {
        "family": name, "objectives": OBJECTIVES, "settings": [setting.key for setting in settings],
        "sampling": {"temperature": 0.8},
    }  # fmt: skip
    store = SampleStore(folder, facts, OBJECTIVES)
    for setting in settings:
        strength = 1.5 if setting.label == STRONG else 1.0
        means = mean_rewards(np.array(setting.weights), strength) if setting.weights else np.zeros(2)
        for prompt in range(20):
            for number in range(2):
                values = means + 0.2 * random.normal(size=2)
                rewards = dict(zip(OBJECTIVES, values.tolist(), strict=True))
                store.add(Sample(setting.key, prompt, number, 7, "a text of five words", 6, "stop", None, rewards))


@pytest.mark.parametrize(("chosen", "strength"), [(None, 1.0), (STRONG, 1.5)])
def test_a_fit_finds_what_the_sweep_was_made_from(
    root: Path, tmp_path: Path, random: np.random.Generator, chosen: str | None, strength: float
) -> None:
    write_sweep(tmp_path / "sweep", random)
    said = run(root, tmp_path / "sweep", "--draws", 200, *(["-m", chosen] if chosen else []))
    assert said.exit_code == 0, said.output
    assert "positive: quantiles" in said.output and "360 answers" in said.output
    calibration = load_family(root).calibration
    assert calibration is not None
    assert calibration.steering == {"method": "bone_soup", **({"strength": 1.5} if chosen else {})}
    weights = random.dirichlet([1, 1])
    expected = mean_rewards(weights, strength)
    found, errors = calibration.rewards(weights[None])[0], calibration.deviations(weights[None])[0]
    # Each point's mean has a standard error of .2 / sqrt(40), the fit's is smaller.
    np.testing.assert_allclose(found, expected, atol=6 * 0.2 / 40**0.5)
    assert (errors > 0).all() and (errors < 0.2 / 40**0.5 * 1.5).all()
    assert all(response.explained > 0.98 for response in calibration.responses.values())
    wanted = calibration.quantiles(weights[None])[0]
    back = reach(calibration, dict(zip(OBJECTIVES, wanted.tolist(), strict=True)))
    np.testing.assert_allclose(list(back.preference.values()), weights, atol=0.02)


def test_another_sweep_checks_the_fit(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    """The made-up family keeps its word; one that answers as another strength would does not."""
    write_sweep(tmp_path / "sweep", random)
    write_sweep(tmp_path / "again", random, points=5)
    said = run(root, tmp_path / "sweep", "--draws", 200, "--check", tmp_path / "again")
    assert said.exit_code == 0, said.output
    assert len(said.output.splitlines()) == 3 + 2 + 1 and "over the 6 preferences" in said.output
    calibration = load_family(root).calibration
    assert calibration is not None
    store, _, settings = reopen(tmp_path / "again")
    table = RewardTable(settings, store.samples, OBJECTIVES)
    kept = check(calibration, table).values()
    assert all(found.points == 6 and found.gap <= found.worst and found.gap < 0.03 for found in kept)
    assert sum(found.inside for found in kept) >= 7
    stronger = calibration.model_copy(update={"steering": {"method": "bone_soup", "strength": 1.5}})
    broken = check(stronger, table).values()
    assert all(found.gap > 0.05 for found in broken) and sum(found.inside for found in broken) <= 4


def test_what_cannot_be_fitted_is_said(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(tmp_path / "sweep", random)
    write_sweep(tmp_path / "few", random, points=2)
    write_sweep(tmp_path / "other", random, name="other")
    write_sweep(tmp_path / "mage", random, methods=("mage",))
    for arguments, words in (
        ([root, tmp_path / "none"], "folder of a sweep"),
        ([tmp_path / "none", tmp_path / "sweep"], "family.toml"),
        ([root, tmp_path / "sweep", "-m", "mage"], f"allowed: bone_soup, {STRONG}"),
        ([root, tmp_path / "few"], "3 preferences are not allowed; allowed: 5 or more"),
        ([root, tmp_path / "other"], "it is of 'other'"),
        ([root, tmp_path / "sweep", "--check", tmp_path / "other"], "it is of 'other'"),
        ([root, tmp_path / "sweep", "--check", tmp_path / "mage"], "allowed: a sweep of method bone_soup"),
    ):
        said = run(*arguments)
        assert said.exit_code == 1 and words in " ".join(said.output.split()) and "Traceback" not in said.output
        assert not (root / CALIBRATION_NAME).exists()


def test_json_is_the_file(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(tmp_path / "sweep", random)
    said = run(root, tmp_path / "sweep", "--json")
    shown, written = json.loads(said.stdout), json.loads((root / CALIBRATION_NAME).read_text())
    assert shown["responses"].keys() == written["responses"].keys() and shown["steering"] == written["steering"]
    assert "check" not in shown
    write_sweep(tmp_path / "again", random, points=5)
    checked = json.loads(run(root, tmp_path / "sweep", "--check", tmp_path / "again", "--json").stdout)
    assert checked["responses"] == shown["responses"] and checked["check"].keys() == shown["responses"].keys()
    assert all(found["points"] == 6 and 0 < found["gap"] <= found["worst"] for found in checked["check"].values())


def test_what_bends_twice_is_fitted_so(
    root: Path, tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The degree is chosen for every objective, by points left out."""

    def twice(weights: np.ndarray, strength: float) -> np.ndarray:
        a, b = weights
        return strength * np.array([20 * a * b * (a - b) + a, 3 * b])

    monkeypatch.setattr(sys.modules[__name__], "mean_rewards", twice)
    write_sweep(tmp_path / "sweep", random)
    said = run(root, tmp_path / "sweep", "--draws", 200)
    assert said.exit_code == 0, said.output
    calibration = load_family(root).calibration
    assert calibration is not None and calibration.responses["positive"].degree == 3
    weights = random.dirichlet([1, 1])
    np.testing.assert_allclose(calibration.rewards(weights[None])[0], twice(weights, 1.0), atol=6 * 0.2 / 40**0.5)
    assert (calibration.deviations(weights[None]) > 0).all()
