import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ladle.merging.family import load_family
from ladle.recipes.compare import VALUES, compare, engine_sampler, guided_settings, main
from ladle.recipes.config import Recipe, load_recipe
from ladle.recipes.evaluate import Setting
from ladle.recipes.model import Base
from ladle.recipes.prompts import load_prompts
from ladle.recipes.rewards import Reward
from ladle.recipes.train import Workshop, make_family


def test_settings_cover_every_kind_of_value_at_its_strength() -> None:
    settings = guided_settings(load_recipe("demo"), 3, 0.5, 2.0)
    assert len(settings) == len({setting.label for setting in settings}) == 1 + 4 * 3
    steering = {setting.label: setting.steering for setting in settings}
    assert steering["base"] == {"method": "base"}
    assert steering["bone_soup (0.5, 0.5)"] == {"method": "bone_soup", "preference": {"positive": 0.5, "concise": 0.5}}
    assert steering["mage implicit (1, 0)"]["strength"] == 0.5
    assert steering["mage explicit (0, 1)"]["strength"] == 2.0
    assert steering["mage both (0, 1)"]["strength"] == {"implicit": 0.5, "explicit": 2.0}
    assert steering["mage both (0, 1)"]["value"] == "both"
    assert steering["mage both (0, 1)"]["preference"] == {"positive": 0.0, "concise": 1.0}


@pytest.fixture
def family(base: Base, recipe: Recipe, rewards: tuple[Reward, ...], tmp_path: Path) -> tuple[Workshop, Path]:
    workshop = Workshop(recipe, base, rewards, tmp_path / "work")
    make_family(workshop, tmp_path / "family", None)
    return workshop, tmp_path / "family"


def test_every_setting_is_sampled_once_through_the_engine(family: tuple[Workshop, Path]) -> None:
    workshop, folder = family
    settings = guided_settings(workshop.recipe, 2, 1.0, 1.0)
    rows = compare(workshop, folder, settings, "test")
    assert [row["method"] for row in rows] == ["base"] + [
        name for name in ("bone_soup", *(f"mage {value}" for value in VALUES)) for _ in range(2)
    ]
    (stored,) = (workshop.folder).glob("comparison-*.jsonl")
    before = stored.read_bytes()
    assert compare(workshop, folder, settings, "test") == rows
    assert stored.read_bytes() == before  # read back
    changed = guided_settings(workshop.recipe, 2, 1.0, 3.0)
    compare(workshop, folder, changed, "test")
    # Only what has another strength is sampled again.
    assert len(stored.read_text().splitlines()) == len(settings) + 4


def test_engine_s_base_is_the_model_and_guidance_of_strength_0_is_bone_soup(
    family: tuple[Workshop, Path], base: Base
) -> None:
    workshop, folder = family
    recipe = workshop.recipe
    greedy = replace(recipe.evaluation, temperature=0.0, top_p=1.0, samples=1)
    prompts = load_prompts(recipe.pool.prompts, "train")
    sampler = engine_sampler(base, load_family(str(folder)), greedy, 6)
    found = sampler(Setting("base", (), {}, {"method": "base"}), prompts)
    assert len(found) == len(prompts)
    for prompt, (tokens,) in zip(prompts, found, strict=True):
        ids = base.prompt_ids(prompt.text)
        with torch.inference_mode():
            logits = base.model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        # Greedy up to ties that rounding decides.
        best = logits.max(-1).values - logits.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(best.max()) < 1e-3
        assert len(tokens) == 6 or tokens[-1] == base.eos

    sampler = engine_sampler(base, load_family(str(folder)), recipe.evaluation, 6)
    soup, *others = [sampler(s, prompts) for s in guided_settings(recipe, 2, 0.0, 0.0) if s.preference == (1.0, 0.0)]
    assert all(other == soup for other in others)


def test_an_answer_s_draws_depend_on_its_prompt_and_number_alone(family: tuple[Workshop, Path], base: Base) -> None:
    workshop, folder = family
    sampler = engine_sampler(base, load_family(str(folder)), workshop.recipe.evaluation, 8)
    prompts = load_prompts(workshop.recipe.pool.prompts, "train")
    setting = guided_settings(workshop.recipe, 2, 1.0, 1.0)[-1]
    whole = sampler(setting, prompts)
    assert sampler(setting, prompts[:2]) == whole[:2]
    assert len({tuple(tokens) for answers in whole for tokens in answers}) > 1


def test_refused_steering_says_why(family: tuple[Workshop, Path], base: Base) -> None:
    from ladle.merging.errors import InputError

    workshop, folder = family
    sampler = engine_sampler(base, load_family(str(folder)), workshop.recipe.evaluation, 8)
    with pytest.raises(InputError, match="preference"):
        sampler(Setting("x", (), {}, {"method": "mage", "preference": {"unknown": 1.0}}), [])


def test_command_refuses_a_single_point(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--family", str(tmp_path), "--points", "1"])
    assert "--points: 1 is not allowed; allowed: 2 or more" in capsys.readouterr().err


def test_rows_are_plain_json(family: tuple[Workshop, Path]) -> None:
    workshop, folder = family
    rows = compare(workshop, folder, guided_settings(workshop.recipe, 2, 1.0, 1.0)[:2], "test")
    assert json.loads(json.dumps(rows)) == rows
    assert all(np.isfinite(float(str(row["positive"]))) for row in rows)
