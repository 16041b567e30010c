"""LoRA on the experts and the router of a mixture: against PEFT, and against weights that are written out."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import MIXTURES, OF_PARAMETERS, write_expert_member, write_mixture, write_parameter_member
from peft import PeftModel
from safetensors.torch import load_file
from seeds import fresh_seed
from tiny_models import rewrite_json, rewrite_tensors
from torch import Tensor
from transformers import AutoModelForCausalLM

from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_experts import GatedExperts
from ladle.merging.bank.grouped_experts import GroupedExperts
from ladle.merging.checkpoints.architecture import Architecture, read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import load_peft
from ladle.merging.members.low_rank import LowRank, LowRankMember
from ladle.merging.preferences.delta_norms import DeltaNorms

pytestmark = pytest.mark.filterwarnings(OF_PARAMETERS)
BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def load(base: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, experts_implementation="eager").eval()


def member(folder: Path, own: Architecture) -> LowRankMember:
    return load_peft(folder, folder.name, own.linear, own.module, experts=own.experts)


def by_peft(base: Path, folder: Path) -> dict[str, Tensor]:
    model: Any = PeftModel.from_pretrained(load(base, torch.float32), folder)
    return dict(model.double().merge_and_unload().state_dict())


@torch.inference_mode()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def mixed(plain: Mapping[str, Tensor], members: Mapping[str, Mapping[str, Tensor]], row: Mapping[str, float]) -> Any:
    return {
        name: weight.double() + sum(c * (members[m][name].double() - weight.double()) for m, c in row.items())
        for name, weight in plain.items()
    }


@pytest.mark.parametrize("kind", MIXTURES)
def test_members_of_different_coefficients_in_one_batch_equal_peft(kind: str, tmp_path: Path) -> None:
    """Fused and single experts, of other ranks, with a router: each row of the batch is the mix that PEFT makes."""
    rng = random.Random(seed := fresh_seed())
    base = write_mixture(tmp_path / "base", kind, seed % 1000)
    write_parameter_member(tmp_path / "both", base, seed % 999, BOTH, r=3, use_rslora=True)
    patterns = {"rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.gate\.weight": 5}}
    write_parameter_member(
        tmp_path / "down", base, seed % 998, ("experts.down_proj", "mlp.gate.weight"), r=4, **patterns
    )
    write_expert_member(tmp_path / "single", kind, seed % 997)
    own = read_architecture(base)
    folders = {name: tmp_path / name for name in ("both", "down", "single")}
    members = [member(folder, own) for folder in folders.values()]
    states = {name: by_peft(base, folder) for name, folder in folders.items()}
    one, other = ({name: low.delta(torch.float64) for name, low in m.modules.items()} for m in (members[0], members[2]))
    dense = sum(float((one[name] * other[name]).sum()) for name in one.keys() & other.keys())
    norms = DeltaNorms({m.name: m for m in members})
    assert dense != 0 and norms.product("both", "single") == pytest.approx(dense, rel=1e-6)
    plain = load(base, torch.float64)
    ids = torch.randint(3, 300, (5, 11), generator=torch.Generator().manual_seed(seed))
    rows: list[dict[str, float]] = [{"both": 1.0}, {"down": 1.0}, {"single": 1.0}, {}]
    rows.append({name: rng.uniform(-1.0, 1.5) for name in folders})
    expected = []
    for line, row in enumerate(rows):
        model = load(base, torch.float64)
        model.load_state_dict(mixed(plain.state_dict(), states, row))
        expected.append(logits(model, ids[line : line + 1]))
    table = torch.tensor([[row.get(m.name, 0.0) for m in members] for row in rows], dtype=torch.float64)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        model = load(base, dtype)
        gate = gated.install(model, Bank(members), dtype, exact=True)
        assert sum(isinstance(module, GatedExperts) for module in model.modules()) == 2
        gate.open(table.to(dtype).repeat_interleave(ids.shape[1], dim=0))
        ours = logits(model, ids).double()
        scale = max(1.0, torch.cat(expected).abs().max().item())
        assert (ours - torch.cat(expected)).abs().max().item() <= bound * scale
    gate.open(None)
    assert torch.allclose(logits(model, ids).double(), logits(plain, ids), atol=1e-5 * scale)


def test_single_factors_of_other_ranks_and_of_some_experts_alone(tmp_path: Path) -> None:
    """Patterns, and what PEFT refuses to join: a gate without its up, an expert without factors."""
    seed = fresh_seed()
    base = write_mixture(tmp_path / "base", "qwen3_moe", seed % 1000)
    own = read_architecture(base)
    ranks, alphas = {"experts.1.gate_proj": 5, "down_proj": 1}, {"experts.0.gate_proj": 2, "layers.1.mlp.experts.3": 9}
    pairs = write_expert_member(
        tmp_path / "m", "qwen3_moe", seed, experts=(0, 1, 3), modules=(0, 2), ranks=ranks, alphas=alphas
    )
    modules = member(tmp_path / "m", own).modules
    assert set(modules) == set(own.experts.weights)
    for name, factors in modules.items():
        delta = factors.delta(torch.float64)
        expected = torch.zeros_like(delta)
        for path, (a, b, scale) in pairs.items():
            parent, expert, leaf = path.rsplit(".", 2)
            if name.startswith(parent) and name.endswith("down_proj") == (leaf == "down_proj"):
                rows = slice(0, len(b))  # of what is joined the gate comes first
                expected[int(expert), rows] = scale * b.double() @ a.double()
        assert (delta - expected).abs().max().item() <= 1e-12


def test_products_of_all_experts_at_once_are_those_of_each(tmp_path: Path) -> None:
    """The form for a GPU, in float32 on a CPU."""
    seed = fresh_seed()
    base = write_mixture(tmp_path / "base", "qwen3_moe", seed % 1000)
    own = read_architecture(base)
    write_parameter_member(tmp_path / "m0", base, seed % 999, BOTH, r=3)
    write_parameter_member(tmp_path / "m1", base, seed % 998, BOTH[1:], r=2)
    bank = Bank([member(tmp_path / name, own) for name in ("m0", "m1")])
    model = load(base, torch.float32)
    experts, path = model.model.layers[1].mlp.experts, "model.layers.1.mlp.experts"
    x, table = torch.randn(9, 32), torch.randn(9, 2)
    table[0] = 0
    index = torch.rand(9, 4).topk(2).indices
    weights = torch.rand(9, 2)
    gate = gated.Gate()
    grouped = GroupedExperts(experts, path, bank, gate, torch.float32)
    own_gate = gated.install(model, bank, torch.float32, exact=True)
    single = model.model.layers[1].mlp.experts
    assert isinstance(single, GatedExperts) and gated.nbytes(model) > 0
    for rows in (None, table):
        gate.open(rows)
        own_gate.open(rows)
        grouped.shell = load(base, torch.float32).model.layers[1].mlp.experts  # its own weights were given back
        torch.testing.assert_close(grouped(x, index, weights), single(x, index, weights), atol=1e-5, rtol=1e-5)
    # Nobody's value depends on who shares the call.
    whole = single(x, index, weights)
    own_gate.open(table[3:4])
    assert torch.equal(single(x[3:4], index[3:4], weights[3:4]), whole[3:4])


def test_what_is_no_lora_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    seed = fresh_seed()
    base = write_mixture(tmp_path / "base", "qwen3_moe", seed % 1000)
    own = read_architecture(base)
    folder = write_parameter_member(tmp_path / "m", base, seed, BOTH, r=2)
    file = folder / "adapter_model.safetensors"
    whole = load_file(file)
    first = "base_model.model.model.layers.0.mlp.experts"
    rewrite_tensors(file, {f"{first}.base_layer.lora_A.weight": whole[f"{first}.base_layer.lora_A.weight"][:-1]})
    with pytest.raises(FamilyError, match=r"layers\.0\.mlp\.experts\.base_layer\.lora_A.*rank 2 and 4 experts"):
        member(folder, own)
    rewrite_tensors(file, dict.fromkeys((f"{first}.base_layer.lora_{side}.weight" for side in "AB"), None))
    with pytest.raises(FamilyError, match=r"1 pairs of factors of this module, but target_parameters names .*gate_up"):
        member(folder, own)
    rewrite_json(folder / "adapter_config.json", target_parameters=["mlp.experts.down_proj"])
    rewrite_tensors(file, {f"base_model.model.model.norm.lora_{side}.weight": torch.ones(2, 2) for side in "AB"})
    with pytest.raises(FamilyError, match=r"model\.norm.*a way of its own; `ladle merge BASE --adapter"):
        member(folder, own)
    write_expert_member(tmp_path / "s", "qwen3_moe", seed)
    file = tmp_path / "s" / "adapter_model.safetensors"
    name = f"{first}.2.up_proj.lora_B.weight"
    rewrite_tensors(file, {name: torch.zeros(7, 3)})
    with pytest.raises(FamilyError, match=r"experts\.2\.up_proj\.lora_B\.weight.*shape \[7, 3\], but \[12, 3\]"):
        member(tmp_path / "s", own)
    rewrite_tensors(file, {name.replace(".2.", ".9."): torch.zeros(12, 3)})
    with pytest.raises(FamilyError):
        member(tmp_path / "s", own)


class _Transposes(torch.nn.Module):
    """A router that does with its weight what no linear layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 6)
        self.gate = torch.nn.Module()
        self.gate.weight = torch.nn.Parameter(torch.randn(3, 6))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        return self.embed(input_ids) @ self.gate.weight.T


def test_a_weight_that_is_not_multiplied_with_as_a_linear_layer_does_is_refused(tmp_path: Path) -> None:
    model = _Transposes()
    before = model.gate.weight
    low = LowRankMember("m", tmp_path, {"gate": LowRank(torch.randn(2, 6), torch.randn(3, 2), 0.5)})
    with pytest.raises(FamilyError, match="tensor gate: .*cannot be mixed; leave it out of target_modules"):
        gated.install(model, Bank([low]), torch.float32, True)
    assert model.gate.weight is before and dict(model.named_parameters())["gate.weight"] is before
