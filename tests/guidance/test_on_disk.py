"""Plans of a family read from disk name nothing that was not loaded."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import write_family, write_full_member, write_lora_member, write_tiny_base

from ladle.guidance.plan import Plan, Steering
from ladle.guidance.registry import available, check_methods, resolve, usable_by_name
from ladle.merging.family.family import Family, load_family

MIX = {"positive": 0.75, "simple": 0.25}
PRESETS = """
[presets.guided]
method = "mage"
preference = { positive = 1.0 }
value = "both"
combine = "ensemble"
candidates = 7
strength = { implicit = 2.0, explicit = 0.5 }
[presets.gloomy]
method = "cfg"
negative_prompt = "You are cheerful."
strength = 2
[presets.careful]
method = "mod"
preference = { positive = 1.0, simple = 1.0 }
divergence = "alpha"
alpha = 0.5
[presets.own]
method = "custom"
normalize = "sum"
terms = [{ source = "small", weight = 0.5 }, { source = { bone-positive = 1.0 }, weight = 1 }]
"""


def table(name: str, /, **entries: Any) -> str:
    return "\n".join([f"[[{name}]]", *(f"{key} = {json.dumps(entry)}" for key, entry in entries.items())]) + "\n"


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Implicit values, one in a policy's folder, explicit ones, one full, and a tuned small model."""
    root = tmp_path_factory.mktemp("guided")
    extra = table("models", name="small", model="small") + table("models", name="dull", model="small", amateur=True)
    extra += table("values", name="tuned", kind="implicit", path="adapters/only-positive", objective="positive")
    extra += table(
        "values",
        name="told",
        kind="implicit",
        path="told",
        objective="simple",
        system="Be plain.",
        anti="bone-positive",
    )
    extra += table("values", name="judge", kind="explicit", path="judge", objective="positive")
    extra += table("values", name="whole", kind="explicit", path="whole", objective="simple")
    extra += table(
        "values", name="tiny", kind="implicit", path="tiny", objective="simple", base="small", reference=False
    )
    write_family(root, n=2, extra=extra + PRESETS)
    write_tiny_base(root / "small", hidden_size=16, num_hidden_layers=1)
    for seed, (name, base) in enumerate([("told", "base"), ("judge", "base"), ("tiny", "small")]):
        write_lora_member(root / name, root / base, seed)
    write_full_member(root / "whole", root / "base")
    for name in ("judge", "whole"):
        save_file({"weight": torch.randn(1, 32), "bias": torch.randn(1)}, root / name / "value_head.safetensors")
    return load_family(root)


def assert_loaded(family: Family, plan: Plan) -> None:
    for source in plan.sources:
        model = family.models[source.model]
        assert {name for name, _ in source.coefficients} <= {*model.low_rank, *model.full}, source
        assert {name for name, _ in source.head} <= family.heads.keys(), source


def test_every_method_names_what_was_loaded(guided: Family) -> None:
    names = usable_by_name(guided)
    assert {name for name, (ready, _) in available(guided).items() if not ready} <= {
        "parm",
        "fusion_route",
        "co_llm",
        "fitted_soup",
    }
    for name in names:
        assert_loaded(guided, resolve(guided, Steering(method=name, preference=MIX)))
    for combine in ("ensemble", "merged"):
        assert_loaded(guided, resolve(guided, Steering("mage", MIX, value="explicit", combine=combine)))


def test_a_shared_folder_is_one_member(guided: Family) -> None:
    plan = resolve(guided, Steering("mage", {"positive": 1}))
    assert plan.sources[1].name == "tuned" and plan.sources[1].coefficients == (("only-positive", 1.0),)
    terms = [{"source": "tuned", "weight": 1}, {"source": "only-positive", "weight": 0.5}]
    one = resolve(guided, Steering("custom", terms=terms))
    assert [(source.coefficients, source.weight) for source in one.sources] == [((("only-positive", 1.0),), 1.5)]


def test_presets_may_carry_the_options_of_guidance(guided: Family) -> None:
    check_methods(guided)
    for name, preset in guided.manifest.presets.items():
        steering = Steering.parse(preset.model_dump(exclude_none=True))
        assert_loaded(guided, plan := resolve(guided, steering))
        assert plan.method == preset.method, name
