from pathlib import Path

import pytest
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.lora import new_adapter

TOKENS = torch.tensor([[5, 9, 40, 7, 22]])


@pytest.fixture
def folders(base: LoadedBase, tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for index, name in enumerate(("left", "right")):
        model = new_adapter(base, AdapterConfig(2, 4, ("q_proj", "up_proj"), seed=5), "default")
        torch.manual_seed(index)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(str(tmp_path / name))
        model.unload()
        folders[name] = tmp_path / name
    return folders


def test_weight_one_is_the_member_as_peft_runs_it(base: LoadedBase, folders: dict[str, Path]) -> None:
    from peft import PeftModel

    members = load_members(base, folders)
    with merged(base, members, {"left": 1.0, "right": 0.0}):
        ours = base.model(TOKENS).logits.clone()
    peft = PeftModel.from_pretrained(base.model, str(folders["left"]))
    torch.testing.assert_close(ours, peft(TOKENS).logits, rtol=1e-4, atol=1e-4)
    peft.unload()


def test_signed_mixture_equals_the_sum_of_deltas_and_is_undone(base: LoadedBase, folders: dict[str, Path]) -> None:
    members = load_members(base, folders)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    with merged(base, members, {"left": 1.75, "right": -0.75}):
        for path, low_rank in members["left"].modules.items():
            delta = 1.75 * low_rank.delta(torch.float64) - 0.75 * members["right"].modules[path].delta(torch.float64)
            weight = dict(base.model.named_parameters())[f"{path}.weight"]
            torch.testing.assert_close(weight.double(), before[f"{path}.weight"].double() + delta, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def test_the_base_comes_back_after_an_error(base: LoadedBase, folders: dict[str, Path]) -> None:
    before = base.model(TOKENS).logits
    with pytest.raises(KeyError), merged(base, load_members(base, folders), {"left": 1.0, "nobody": 1.0}):
        pass
    assert torch.equal(base.model(TOKENS).logits, before)
