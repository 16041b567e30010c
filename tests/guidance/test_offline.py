import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB_SIZE
from transformers import AutoModelForCausalLM

from ladle.guidance.offline import merge_offline
from ladle.guidance.plan import Steering
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.merges.export import PROVENANCE


def test_a_preference_becomes_a_checkpoint(family: Family, root: Path, tmp_path: Path, seed: int) -> None:
    plan = merge_offline(family, Steering(preference={"positive": 3, "simple": 1}), tmp_path / "out")
    assert plan.coefficients is not None
    document = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert document["coefficients"] == plan.coefficients.as_dict() and document["method"] == "bone_soup"
    assert document["preference"] == {"positive": 0.75, "simple": 0.25, "concise": 0.0}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj"
    expected = family.base.tensor(f"{name}.weight").double()
    for member, coefficient in plan.coefficients.as_dict().items():
        expected = expected + coefficient * family.low_rank[member].modules[name].delta(torch.float64)
    torch.testing.assert_close(merged.get_submodule(name).weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_strength_zero_and_the_base_are_the_base(family: Family, root: Path, tmp_path: Path, seed: int) -> None:
    tokens = torch.randint(0, VOCAB_SIZE, (1, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(root / "base")(tokens).logits
        for name, steering in {
            "zero": Steering(preference={"positive": 1}, strength=0.0),
            "base": Steering(method="base"),
        }.items():
            merge_offline(family, steering, tmp_path / name)
            assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits, expected)


def test_a_backbone_asked_for_by_its_own_rewards_comes_back(family: Family, tmp_path: Path) -> None:
    assert family.matrix is not None
    rewards = dict(zip(family.objectives, family.matrix[1].tolist(), strict=True))
    merge_offline(family, Steering(preference=rewards), tmp_path / "solved")
    merge_offline(family, Steering(coefficients={"bone-simple": 1.0}), tmp_path / "stated")
    solved, stated = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("solved", "stated"))
    assert solved == stated


def test_what_a_request_may_not_ask_a_merge_may_not_either(family: Family, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"steering\.preference"):
        merge_offline(family, Steering(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "steering",
    [
        {"method": "pad", "preference": {"simple": 1}},  # one source counts, but a mask stands beside it
        {"method": "vas", "preference": {"simple": 1}},
        {"method": "mage", "preference": {"simple": 1}},
        {"method": "custom", "terms": [{"source": "small", "weight": 1}]},
        {"method": "cfg", "strength": 0},
        {"method": "cfg"},
    ],
)
def test_guidance_is_no_checkpoint(guided: Family, tmp_path: Path, steering: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"steering\.method.*one set of weights"):
        merge_offline(guided, Steering.parse(steering), tmp_path / "out")
    assert not (tmp_path / "out").exists()
