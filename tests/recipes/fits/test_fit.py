"""``ladle fit``: from a sweep's samples to the file that ``fitted_soup`` chooses its coefficients by."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import load_family
from ladle.merging.family.surface import SURFACE_NAME
from ladle.merging.preferences.simplex import grid
from ladle.recipes.commands.fit import command
from ladle.recipes.sweeps.grid import settings_of
from ladle.recipes.sweeps.store import Sample, SampleStore

OBJECTIVES = ["positive", "simple"]
MEMBERS = ("bone-positive", "bone-simple")
METHODS = ("bone_soup", "bone_soup:strength=1.5", "bone_soup:strength=0.5")
PROMPTS, ANSWERS, NOISE = 20, 2, 0.3
SOUND = "a text of five words"


def run(*arguments: object) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def truth(a: float, b: float) -> np.ndarray:
    """Mean rewards of the made-up family at coefficients: each has its best at 1.2 of its own backbone."""
    return np.array([4 * a - a * a / 0.6 - b * b, 20 * b - b * b / 0.12 - 5 * a * a])


def write_sweep(
    root: Path,
    folder: Path,
    random: np.random.Generator,
    methods: Sequence[str] = METHODS,
    *,
    points: int = 4,
    judged: bool = True,
    worse: float = 0.0,
    temperature: float = 0.8,
) -> None:
    """Samples of ``methods``; the base finds an answer ``0.1 (a^2 + b^2)`` nats a token more surprising than its own.
    A share ``worse`` of them is degenerate."""
    family = load_family(root)
    settings = settings_of(methods, grid(2, points))
    merges = {}
    for setting in settings:
        plan = resolve(family, Steering.parse(setting.request(OBJECTIVES)))
        merges[setting.key] = plan.coefficients.as_dict() if plan.coefficients else {}
    facts = {
        "family": "tiny", "objectives": OBJECTIVES, "settings": [setting.key for setting in settings],
        "sampling": {"temperature": temperature}, "coefficients": merges,
    }  # fmt: skip
    store = SampleStore(folder, facts, OBJECTIVES)
    for setting in settings:
        a, b = (merges[setting.key].get(name, 0.0) for name in MEMBERS)
        for prompt in range(PROMPTS):
            for number in range(ANSWERS):
                rewards = truth(a, b) + NOISE * random.normal(size=2) * (1.0 if setting.weights else 1 / NOISE)
                text = "no" if setting.weights and random.uniform() < worse else SOUND
                logprob = -6 * (2.0 + 0.1 * (a * a + b * b)) if judged else None
                values = dict(zip(OBJECTIVES, rewards.tolist(), strict=True))
                store.add(Sample(setting.key, prompt, number, 7, text, 6, "stop", logprob, values))


def test_a_fit_finds_what_the_sweep_was_made_from(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(root, tmp_path / "sweep", random)
    said = run(root, tmp_path / "sweep", "--perplexity", 2)
    assert said.exit_code == 0, said.output
    assert (
        "16 merges of bone-positive, bone-simple" in said.output and f"{16 * PROMPTS * ANSWERS} answers" in said.output
    )
    surface = load_family(root).surface
    assert surface is not None and tuple(surface.members) == MEMBERS
    assert all(explained > 0.95 for explained in surface.explained.values())
    point = random.dirichlet(np.ones(len(surface.design))) @ np.array(surface.design)
    # The base's answers have a standard deviation of about 1 and a mean of 0, known to 1 / sqrt(40).
    np.testing.assert_allclose(surface.heights(point[None])[0], truth(*point) + 1, rtol=0.5, atol=0.9)
    assert surface.surprises(point[None])[0] == pytest.approx(0.1 * float(point @ point), abs=1e-6)
    for weights, own in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        best = surface.best(weights)
        assert best[own] == pytest.approx(1.2, abs=0.25) and abs(best[1 - own]) < 0.35
    assert surface.most_surprise == pytest.approx(math.log(2))


def test_perplexity_bounds_what_is_chosen(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(root, tmp_path / "sweep", random)
    assert run(root, tmp_path / "sweep", "--perplexity", 1.03).exit_code == 0
    surface = load_family(root).surface
    assert surface is not None
    best = np.array(surface.best([1.0, 0.0]))
    assert 0.1 * float(best @ best) == pytest.approx(math.log(1.03), rel=0.05)


def test_degenerate_answers_count_as_nothing(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(root, tmp_path / "sound", random)
    write_sweep(root, tmp_path / "worse", random, worse=1.0)
    assert run(root, tmp_path / "sound").exit_code == 0
    sound = load_family(root).surface
    assert run(root, tmp_path / "worse", "--force").exit_code == 0  # nothing is left to explain
    worse = load_family(root).surface
    assert sound is not None and worse is not None
    point = np.array([[1.2, 0.0]])
    assert sound.heights(point)[0, 0] > 2 and worse.heights(point)[0, 0] < 0.5


def test_a_fit_that_explains_nothing_is_refused_and_the_former_one_is_kept(
    root: Path, tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(root, tmp_path / "sweep", random)
    assert run(root, tmp_path / "sweep").exit_code == 0
    file = root / SURFACE_NAME
    before = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("ladle.recipes.fits.fit.explained", lambda *_: -14.73)
        said = run(root, tmp_path / "sweep", "--order", 0.2)
        assert said.exit_code == 1 and "the fit explains nothing of" in said.output and "-1473 %" in said.output
        assert file.read_bytes() == before
        said = run(root, tmp_path / "sweep", "--order", 0.2, "--force")
    assert said.exit_code == 0 and f"{SURFACE_NAME}.bak" in said.output
    assert file.read_bytes() != before and file.with_name(f"{SURFACE_NAME}.bak").read_bytes() == before


def test_sweeps_add_up(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    """Neither says enough alone."""
    write_sweep(root, tmp_path / "one", random, METHODS[:1])
    write_sweep(root, tmp_path / "two", random, METHODS[1:2])
    said = run(root, tmp_path / "one")
    assert said.exit_code == 1 and "6 settings are not allowed; allowed: 8 or more" in said.output
    said = run(root, tmp_path / "one", tmp_path / "two", "--json")
    assert said.exit_code == 0 and len(json.loads(said.stdout)["design"]) == 12
    assert json.loads(said.stdout)["answers"] == 12 * PROMPTS * ANSWERS


def test_what_cannot_be_fitted_is_said(root: Path, tmp_path: Path, random: np.random.Generator) -> None:
    write_sweep(root, tmp_path / "sweep", random)
    write_sweep(root, tmp_path / "both", random, (*METHODS, "rewarded_soup"), points=8)
    write_sweep(root, tmp_path / "unjudged", random, judged=False)
    write_sweep(root, tmp_path / "guided", random, ("cfg",), points=1)
    write_sweep(root, tmp_path / "warm", random, temperature=1.0)
    write_sweep(root, tmp_path / "silent", random)
    asked = json.loads((tmp_path / "silent" / "sweep.json").read_text())
    asked["coefficients"].pop("bone_soup@1,0")
    (tmp_path / "silent" / "sweep.json").write_text(json.dumps(asked))
    for arguments, words in (
        ([tmp_path / "none"], "folder of a sweep"),
        ([tmp_path / "both"], "members that are never merged with each other"),
        ([tmp_path / "silent"], "one that says what was merged in it"),
        ([tmp_path / "unjudged"], "--perplexity-answers 1 or more"),
        ([tmp_path / "guided"], "nothing but the base"),
        ([tmp_path / "guided", "-m", "cfg"], "it does more than merge weights"),
        ([tmp_path / "sweep", "-m", "mod"], "'mod' is not allowed; allowed: bone_soup, bone_soup:strength=1.5"),
        ([tmp_path / "sweep", tmp_path / "warm"], "{'temperature': 1.0} is not allowed"),
    ):
        said = run(root, *arguments)
        assert said.exit_code == 1 and words in " ".join(said.output.split()), said.output
        assert "Traceback" not in said.output and not (root / SURFACE_NAME).exists()
    said = run(root, tmp_path / "both", *(each for method in METHODS for each in ("-m", method)))
    assert said.exit_code == 0, said.output
