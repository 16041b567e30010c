import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import Recipe, load_recipe
from ladle.recipes.rewards import Reward

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "tiny_models.py"


def _tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_models_for_recipes", _FIXTURES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def root(tmp_path: Path, random: np.random.Generator) -> Path:
    """A family of two objectives."""
    folder = _tiny_models().write_family(tmp_path / "family", seed=int(random.integers(1000)), n=2)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture
def base_folder(tmp_path: Path, seed: int) -> Path:
    folder = _tiny_models().write_tiny_base(tmp_path / "base", "llama", seed)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture
def base(base_folder: Path) -> LoadedBase:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model.requires_grad_(False)
    return LoadedBase(model.eval(), AutoTokenizer.from_pretrained(base_folder))


class VowelShare:
    """A reward that the texts of a random model differ in, unlike sentiment."""

    name = "positive"

    def __call__(self, prompt: str, response: str) -> float:
        return sum(letter in "aeiou" for letter in response) / (len(response) + 1)


class Shortness:
    name = "concise"

    def __call__(self, prompt: str, response: str) -> float:
        return -float(len(response))


@pytest.fixture
def rewards() -> tuple[Reward, ...]:
    return (VowelShare(), Shortness())


@pytest.fixture
def recipe(base_folder: Path, tmp_path: Path) -> Recipe:
    """The shipped recipe with its sizes reduced to what a random model trains on in seconds."""
    rows = [("train", t, f"{t} {n}") for t in ("rain", "sea", "stars") for n in range(2)] + [("test", "garden", "tell")]
    prompts = tmp_path / "tiny.jsonl"
    lines = [json.dumps({"split": split, "topic": topic, "prompt": text}) for split, topic, text in rows]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    shipped = load_recipe("demo")
    pool = replace(shipped.pool, prompts=str(prompts), max_tokens=16, batch_rows=24, cut_lengths=(2, 10))
    pool = replace(pool, short_lengths=(1, 2), styles=dict(list(shipped.pool.styles.items())[:2]))
    return replace(
        shipped,
        base=str(base_folder),
        chat_template=None,
        objectives=("positive", "concise"),
        oracles={},
        trl={"save_strategy": "no"},
        presets={"cheerful": {"positive": 1.0}, "balanced": {"positive": 0.5, "concise": 0.5}},
        pool=pool,
        adapter=replace(shipped.adapter, rank=2, alpha=4),
        dpo=replace(shipped.dpo, prompts_per_step=2, epochs=2),
        value_adapter=replace(shipped.value_adapter, rank=2, alpha=4),
        value=replace(shipped.value, held_out=2, answers=3, prompts_per_step=2, epochs=2),
        evaluation=replace(shipped.evaluation, samples=2, grid=3, bootstrap=50),
    )
