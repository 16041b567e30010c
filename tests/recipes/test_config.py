"""Recipes as they are shipped, and their variations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ladle.merging.family.manifest import load_manifest
from ladle.recipes.config import load_recipe
from ladle.recipes.training.family_manifest import write_manifest


@pytest.mark.parametrize(("name", "objectives"), [("demo", 3), ("quick", 2)])
def test_shipped_recipes_load(name: str, objectives: int) -> None:
    recipe = load_recipe(name)
    assert len(recipe.objectives) == objectives and recipe.name == name
    assert list(recipe.members()) == [f"{kind}-{o}" for kind in ("bone", "policy") for o in recipe.objectives]


def test_another_training_seed_keeps_pool_and_evaluation() -> None:
    recipe = load_recipe("demo")
    other = recipe.varied(beta=0.6, seed=100)
    assert (other.pool, other.evaluation) == (recipe.pool, recipe.evaluation)
    assert other.adapter.seed == recipe.adapter.seed + 100 and other.dpo.seed == recipe.dpo.seed + 100
    assert other.value.seed == recipe.value.seed + 100 and other.soup.beta == 0.6
    assert recipe.varied() == recipe
    with pytest.raises(ValueError, match=r"--beta: 0\.2 is not allowed; allowed: 1/n < beta < 1"):
        recipe.varied(beta=0.2)


def test_oracles_are_listed_once_they_are_there(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    write_manifest(recipe, tmp_path)
    assert [policy.objective for policy in load_manifest(tmp_path).policies] == list(recipe.objectives)
    for name in recipe.oracle_members():
        (tmp_path / "adapters" / name).mkdir(parents=True)
    write_manifest(recipe, tmp_path)
    oracles = [policy for policy in load_manifest(tmp_path).policies if policy.objective is None]
    assert [policy.name for policy in oracles] == list(recipe.oracle_members())
    for policy, weights in zip(oracles, recipe.oracle_members().values(), strict=True):
        np.testing.assert_allclose(policy.rewards or [], weights, atol=1e-9)
    with pytest.raises(ValueError, match="allowed: the objectives"):
        replace(recipe, oracles={"calm": {"calm": 1.0}}).oracle_members()


def test_a_recipe_extends_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    own = 'extends = "quick"\nname = "mine"\nobjectives = ["asks", "ends"]\n[rewards]\nasks = "r.py:asks"\n'
    path.write_text(own + '[pool]\nlimit = 3\n[pool.styles]\nwarm = "Be warm."\n')
    mine, quick = load_recipe(str(path)), load_recipe("quick")
    assert mine.objectives == ("asks", "ends") and mine.rewards == {"asks": "r.py:asks"} and mine.folder == tmp_path
    assert mine.pool == replace(quick.pool, limit=3, styles={"warm": "Be warm."}) and mine.dpo == quick.dpo
    for old, new, words in (
        ('"quick"', '"slow"', "extends: 'slow' is not allowed; allowed: demo, quick"),
        ("asks = ", "sings = ", "rewards: 'sings' is not allowed"),
    ):
        path.write_text(own.replace(old, new, 1))
        with pytest.raises(ValueError, match=words):
            load_recipe(str(path))
