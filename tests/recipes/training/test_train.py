import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import load_family
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import Recipe, load_recipe
from ladle.recipes.rewards import Reward
from ladle.recipes.training.evaluate import grid_settings
from ladle.recipes.training.train import Workshop, fingerprint, make_family


def test_a_whole_family_is_made_and_loads(
    base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    workshop = Workshop(recipe, base, rewards, tmp_path / "work")
    out = tmp_path / "family"
    measured = make_family(workshop, out)

    family = load_family(str(out))
    assert family.objectives == ("positive", "concise")
    assert family.backbones == ("bone-positive", "bone-concise")
    assert family.singles == {"positive": "policy-positive", "concise": "policy-concise"}
    assert family.matrix is not None
    np.testing.assert_allclose(family.matrix, recipe.matrix())
    assert len(family.low_rank) == 6  # implicit values share the policies' weights
    values = {value.name: value for value in family.values}
    for objective in recipe.objectives:
        implicit, explicit = values[f"implicit-{objective}"], values[f"explicit-{objective}"]
        assert (implicit.kind, implicit.objective, implicit.member) == ("implicit", objective, f"policy-{objective}")
        assert implicit.reference
        assert (explicit.kind, explicit.objective, explicit.member) == ("explicit", objective, explicit.name)
        assert float(family.heads[explicit.name].weight.abs().sum()) > 0.0
    assert len(values) == 4
    config = json.loads((out / "adapters" / "bone-concise" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == recipe.base_name

    rows = list(csv.DictReader((out / "evaluation.csv").read_text().splitlines()))
    assert len(rows) == 1 + 2 * recipe.evaluation.grid
    assert [row["mu_positive"] for row in rows[1:4]] == ["1", "0.5", "0"]
    for row in rows:
        assert float(row["concise_low"]) <= float(row["concise"]) <= float(row["concise_high"])
        assert float(row["base_perplexity"]) > 1.0
        assert 0.0 <= float(row["degenerate"]) <= 1.0
    card = (out / "README.md").read_text()
    assert all(row["concise"] in card for row in rows)
    fits = list(csv.DictReader((out / "values.csv").read_text().splitlines()))
    for name, points in measured["values"].items():  # type: ignore[attr-defined]
        for fit in points:
            assert f"| {name} | {fit['after']} | {fit['answers']} | {fit['explained']:.2f} [" in card
    assert {row["value"] for row in fits} == {"explicit-positive", "explicit-concise"}
    for row in fits:
        assert float(row["explained_low"]) <= float(row["explained_high"]) <= 1.0
    assert str(tmp_path) not in (out / "evaluation.csv").read_text()

    # Nothing is sampled or trained again, and the answers are the same.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    again = make_family(workshop, tmp_path / "again")
    assert json.dumps(again) == json.dumps(measured)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}


class LetterE:
    name = "simple"

    def __call__(self, prompt: str, response: str) -> float:
        return response.count("e") / (len(response) + 1)


def test_three_objectives_are_judged_over_their_simplex(
    base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    three = replace(recipe, objectives=("positive", "simple", "concise"))
    out = tmp_path / "family"
    make_family(Workshop(three, base, (rewards[0], LetterE(), rewards[1]), tmp_path / "work"), out)
    rows = list(csv.DictReader((out / "evaluation.csv").read_text().splitlines()))
    assert len(rows) == 1 + 2 * 6, "halves: three corners and three middles"
    for row in rows[1:]:
        assert sum(float(row[f"mu_{name}"]) for name in three.objectives) == pytest.approx(1.0)
    card = (out / "README.md").read_text()
    assert all(f"- `{name}`: " in card for name in three.objectives) and "9 LoRA adapters" in card
    assert len(load_family(str(out)).backbones) == 3


def test_settings_are_solved_not_clipped() -> None:
    recipe = replace(load_recipe("demo"), objectives=("positive", "concise"))
    settings = {setting.label: setting.coefficients for setting in grid_settings(recipe, 5)}
    assert settings["base"] == {}
    for k in range(5):
        mu = np.array([1 - k / 4, k / 4])
        expected = np.linalg.solve(
            recipe.matrix().T, mu * [recipe.soup.extrapolation.get(n, 1.0) for n in recipe.objectives]
        )
        mixed = settings[f"bone_soup ({mu[0]:g}, {mu[1]:g})"]
        assert list(mixed) == ["bone-positive", "bone-concise"]
        np.testing.assert_allclose(list(mixed.values()), expected, atol=1e-12)
        np.testing.assert_allclose(list(settings[f"rewarded_soup ({mu[0]:g}, {mu[1]:g})"].values()), mu, atol=1e-12)


def test_fingerprint_sees_every_setting() -> None:
    recipe = load_recipe("demo")
    assert fingerprint(recipe.dpo) == fingerprint(load_recipe("demo").dpo)
    assert fingerprint(recipe.dpo) != fingerprint(replace(recipe.dpo, beta=recipe.dpo.beta + 0.01))


def test_members_are_the_rows_of_b_and_the_unit_rows() -> None:
    members = load_recipe("demo").members()
    mixed = [[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]]
    np.testing.assert_allclose(np.stack(list(members.values())), [*mixed, *np.eye(3)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("beta = 0.7", "beta = 0.3", r"soup.beta: 0.3 is not allowed"),
        ("beta = 0.7", "", r"give soup.beta or soup.matrix, one of them"),
        ("beta = 0.7", "matrix = [[1, 0], [0, 1]]", r"soup.matrix: 2x2 numbers are not allowed; allowed: 3x3"),
        ("beta = 0.7", "matrix = [[1, 0, 0], [1, 0, 0], [0, 0, 1]]", r"soup.matrix: .*singular"),
        (
            "concise_target",
            'algorithm = "ppo"\nconcise_target',
            r"algorithm: 'ppo' is not allowed; allowed: dpo, grpo, rloo",
        ),
        ("concise_target", 'algorithm = "grpo"\nconcise_target', r"algorithm: 'grpo' needs the table \[grpo\]"),
        ("warmup =", "warm =", r"\[dpo\]: unknown key 'warm'"),
        ("rank = 4", "", r"\[adapter\]: the key 'rank' is missing"),
        ("td_lambda = 1.0", "td_lambda = 1.5", r"value.td_lambda: 1.5 is not allowed; allowed: 0 to 1"),
        ("held_out = 8", "held_out = 0", r"value.held_out: 0 is not allowed; allowed: 1 or more"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    from ladle.recipes import config

    text = (Path(config.__file__).parent / "configs" / "demo.toml").read_text()
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_recipe(str(path))


def test_oracles_are_trained_and_values_left_out_on_request(
    base: LoadedBase, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path
) -> None:
    recipe = replace(recipe, oracles={"even": {"positive": 1.0, "concise": 1.0}})
    make_family(Workshop(recipe, base, rewards, tmp_path / "work"), tmp_path / "f", None, oracles=True, explicit=False)
    family = load_family(str(tmp_path / "f"))
    assert "oracle-even" in family.mergeable and "oracle-even" not in family.singles.values()
    assert {value.kind for value in family.values} == {"implicit"}
    plan = resolve(family, Steering(coefficients={"oracle-even": 1.0}))
    assert plan.sources[0].coefficients == (("oracle-even", 1.0),)
