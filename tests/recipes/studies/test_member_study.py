"""Members of several families beside each other."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, Recipe
from ladle.recipes.rewards import Reward
from ladle.recipes.studies import member_study
from ladle.recipes.training.evaluate import SampledAnswer
from ladle.recipes.training.lora import new_adapter


def _adapter(base: LoadedBase, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = new_adapter(base, AdapterConfig(2, 4, ("q_proj", "up_proj"), seed=seed), "default")
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))
    model.unload()


def test_members_of_two_families_are_compared(
    base: LoadedBase,
    recipe: Recipe,
    rewards: tuple[Reward, ...],
    tmp_path: Path,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place, family in enumerate(("kept", "same", "other")):
        _adapter(base, tmp_path / family / "adapters/policy-concise", seed + place // 2)
    _adapter(base, tmp_path / "kept/adapters/bone-concise", seed)  # the others have none: it is left out
    monkeypatch.setattr(member_study, "load_recipe", lambda name: recipe)
    monkeypatch.setattr(member_study, "load_base", lambda name, device, threads: base)
    monkeypatch.setattr(member_study, "reward_of", lambda name, *rest: rewards[recipe.objectives.index(name)])
    families = [f"{name}={tmp_path / name}" for name in ("kept", "same", "other")]
    line = ["demo", *families, "--out", str(tmp_path / "study"), "--work", str(tmp_path / "work")]
    outcome = CliRunner().invoke(member_study.app, line)
    assert outcome.exit_code == 0, outcome.output
    with (tmp_path / "study/members.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["member"], row["family"]) for row in rows] == [
        ("base", ""), ("policy-concise", "kept"), ("policy-concise", "same"), ("policy-concise", "other")
    ]  # fmt: skip
    kept, same, other = rows[1:]
    for name in recipe.objectives:
        assert same[name] == kept[name] and same[f"{name}_within"] == "1"
        assert float(same[f"{name}_less_first"]) == 0 == float(same[f"{name}_less_first_high"])
        assert not kept[f"{name}_less_first"]
    assert any(other[name] != kept[name] for name in recipe.objectives)


def test_a_difference_is_that_of_the_same_prompts(recipe: Recipe, seed: int) -> None:
    draw = np.random.default_rng(seed)
    hard = draw.normal(scale=10, size=(40, 1))  # prompts differ far more than families do

    def answers(less: float) -> list[SampledAnswer]:
        values = (hard + draw.normal(scale=0.1, size=(40, 2)) - less).ravel()
        return [SampledAnswer("", "", 3, False, -1.0, (float(value),)) for value in values]

    config = replace(recipe.evaluation, samples=2, bootstrap=200)
    everything = {"base": answers(0), "a/m": answers(0), "b/m": answers(0.5), "c/m": answers(20)}
    _, first, near, far = member_study.compare(everything, ["a", "b", "c"], ["m"], ["kind"], config)
    assert near["kind_within"] == 1 and float(str(near["kind_less_first_high"])) < 0
    assert float(str(near["kind_less_first"])) == pytest.approx(-0.5, abs=0.1)
    assert far["kind_within"] == 0 and first["kind_within"] == ""


@pytest.mark.parametrize(
    ("families", "says"), [(["kept"], "NAME=FOLDER"), (["kept=nowhere"], "NAME=FOLDER"), (["kept={}"], "no member")]
)
def test_what_cannot_be_compared_is_refused(families: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    named = [family.format(tmp_path) for family in families]
    outcome = CliRunner().invoke(member_study.app, ["demo", *named, "--out", "x", "--work", "y"])
    assert outcome.exit_code == 2 and says in outcome.output.replace("\n", " ")
