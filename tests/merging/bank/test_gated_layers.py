"""Gated forward against models whose merged weights are written out, by us and by PEFT."""

import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from seeds import fresh_seed
from tiny_engine import merged_state, random_coefficients
from tiny_models import ARCHITECTURES, tiny_model, write_lora_member, write_tiny_base
from torch import Tensor
from transformers import AutoModelForCausalLM

from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import LowRank, LowRankMember, load_peft

TOLERANCE = 1e-9
QKV = ["q_proj", "k_proj", "v_proj", "qkv_proj"]


def _members(base: Path, options: Sequence[Mapping[str, Any]], seed: int) -> list[LowRankMember]:
    shapes = read_architecture(base).linear
    members = []
    for index, option in enumerate(options):
        folder = write_lora_member(base.parent / f"member-{index}", base, seed + index, **option)
        members.append(load_peft(folder, f"m{index}", shapes))
    return members


def _load(base: Path, dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def _gate(base: Path, members: Sequence[LowRankMember], dtype: torch.dtype = torch.float64) -> tuple[Any, gated.Gate]:
    model = _load(base, dtype)
    return model, gated.install(model, Bank(members), dtype, exact=True)


@torch.inference_mode()
def _logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def _forward(
    model: Any, gate: gated.Gate, ids: Tensor, rows: Sequence[Mapping[str, float]], names: Sequence[str]
) -> Tensor:
    """Logits with coefficient row ``rows[i]`` for every token of line i of ``ids``."""
    table = torch.tensor([[row.get(name, 0.0) for name in names] for row in rows], dtype=model.dtype)
    gate.open(table.repeat_interleave(ids.shape[1], dim=0))
    return _logits(model, ids)


def _written_out(base: Path, members: Sequence[LowRankMember], coefficients: Mapping[str, float]) -> Any:
    model = _load(base)
    head = model.get_output_embeddings()
    if any("lm_head" in member.modules for member in members):
        # A merged head is no longer the embedding.
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.load_state_dict(merged_state(model, Bank(members), coefficients))
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gated_equals_written_out(arch: str, tmp_path: Path) -> None:
    """Different ranks, alphas, rsLoRA, patterns, members that touch only some modules; a row of coefficients a line."""
    rng = random.Random(seed := fresh_seed())
    base = write_tiny_base(tmp_path / "base", arch, seed % 1000)
    options: list[dict[str, Any]] = [
        {"r": 3, "alpha": 5},
        {"r": 5, "alpha": 7, "use_rslora": True},
        {"r": 2, "rank_pattern": {"o_proj": 4}, "alpha_pattern": {r"layers\.0\.mlp\.down_proj": 3}},
        {"r": 4, "target_modules": [name for name in QKV if (name == "qkv_proj") == (arch == "phi3")][-1:]},
        {"r": 1, "target_modules": ["down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ]
    members = _members(base, options, seed % 10_000)
    names = [member.name for member in members]
    model, gate = _gate(base, members)
    ids = torch.randint(3, 300, (4, 21), generator=torch.Generator().manual_seed(seed))
    rows = [random_coefficients(rng, names) for _ in range(3)] + [{}]
    ours = _forward(model, gate, ids, rows, names)
    for line, coefficients in enumerate(rows):
        expected = _logits(_written_out(base, members, coefficients), ids[line : line + 1])
        assert (ours[line : line + 1] - expected).abs().max().item() <= TOLERANCE, coefficients
    assert (ours[0] - ours[3]).abs().max() > 1e-3 or not any(rows[0].values()), "the members change nothing"
    gate.open(None)
    assert (_logits(model, ids) - _logits(_load(base), ids)).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2", "phi3"])
def test_gated_equals_peft(arch: str, tmp_path: Path) -> None:
    """One member at weight 1 is PEFT's merge_and_unload; mixtures are its rank concatenation ("cat")."""
    rng = random.Random(seed := fresh_seed())
    base = write_tiny_base(tmp_path / "base", arch, seed % 1000)
    options: list[dict[str, Any]] = [{"r": 2}, {"r": 5, "alpha": 3, "use_rslora": True}, {"r": 3, "alpha": 1}]
    members = _members(base, options, seed % 10_000)
    names = [member.name for member in members]
    model, gate = _gate(base, members)
    ids = torch.randint(3, 300, (1, 17), generator=torch.Generator().manual_seed(seed))
    for member in members:
        peft = PeftModel.from_pretrained(_load(base), str(member.path)).double().merge_and_unload()
        ours = _forward(model, gate, ids, [{member.name: 1.0}], names)
        assert (ours - _logits(peft, ids)).abs().max().item() <= TOLERANCE
    peft = PeftModel.from_pretrained(_load(base), str(members[0].path), adapter_name="m0")
    for member in members[1:]:
        peft.load_adapter(str(member.path), adapter_name=member.name)
    for mixture in range(3):
        weights = [rng.uniform(-1.5, 2.5) for _ in names]
        peft.add_weighted_adapter(names, weights, f"mixture{mixture}", combination_type="cat")
        peft.set_adapter(f"mixture{mixture}")
        theirs = _logits(peft.double(), ids)
        ours = _forward(model, gate, ids, [dict(zip(names, weights, strict=True))], names)
        # PEFT multiplies weight * scaling * A in the adapters' float32.
        assert (ours - theirs).abs().max().item() <= 1e-5, weights


def test_patterns_equal_peft(tmp_path: Path) -> None:
    seed = fresh_seed()
    base = write_tiny_base(tmp_path / "base", "llama", seed % 1000)
    options = {
        "r": 3,
        "use_rslora": True,
        "rank_pattern": {r"layers\.1\.self_attn\.o_proj": 6, "down_proj": 1},
        "alpha_pattern": {"q_proj": 2, r"layers\.0\..*": 11},
    }
    members = _members(base, [options], seed % 10_000)
    model, gate = _gate(base, members)
    ids = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(seed))
    peft = PeftModel.from_pretrained(_load(base), str(members[0].path)).double().merge_and_unload()
    ours = _forward(model, gate, ids, [{"m0": 1.0}], ["m0"])
    assert (ours - _logits(peft, ids)).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("tie", [True, False])
def test_output_head_as_target(tie: bool, tmp_path: Path) -> None:
    """The merged head differs from the embedding it was tied to, which stays as it is."""
    seed = fresh_seed()
    base = write_tiny_base(tmp_path / "base", "llama", seed % 1000, tie=tie)
    members = _members(base, [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["lm_head"]}], seed % 1000)
    model, gate = _gate(base, members)
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(seed))
    rows = [{"m0": 0.7, "m1": -0.4}, {"m1": 1.3}]
    ours = _forward(model, gate, ids, rows, ["m0", "m1"])
    for line, coefficients in enumerate(rows):
        expected = _logits(_written_out(base, members, coefficients), ids[line : line + 1])
        assert (ours[line : line + 1] - expected).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma3_text"])
def test_zero_coefficients_are_the_closed_gate_bit_for_bit(arch: str, tmp_path: Path) -> None:
    seed = fresh_seed()
    base = write_tiny_base(tmp_path / "base", arch, seed % 1000)
    members = _members(base, [{}, {"r": 3}], seed % 1000)
    model, gate = _gate(base, members, torch.float32)
    ids = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(seed))
    gate.open(None)
    plain = _logits(model, ids)
    ours = _forward(model, gate, ids, [{}, {"m0": 1.0}, {}], ["m0", "m1"])
    assert torch.equal(ours[[0, 2]], plain[[0, 2]])
    assert not torch.equal(ours[1], plain[1])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_stays_close_to_float64(arch: str, tmp_path: Path) -> None:
    rng = random.Random(seed := fresh_seed())
    base = write_tiny_base(tmp_path / "base", arch, seed % 1000)
    members = _members(base, [{}, {"r": 3}], seed % 1000)
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(seed))
    rows = [{name: rng.uniform(-1, 1.5) for name in ("m0", "m1")} for _ in range(2)]
    exact = _forward(*_gate(base, members), ids, rows, ["m0", "m1"])
    ours = _forward(*_gate(base, members, torch.float32), ids, rows, ["m0", "m1"])
    assert (ours.double() - exact).abs().max().item() <= 2e-4 * exact.abs().max().item()


def test_layers_with_one_input_share_one_product() -> None:
    for arch in ARCHITECTURES:
        groups = {tuple(path.rpartition(".")[2] for path in group) for group in gated.shared_inputs(tiny_model(arch))}
        if arch == "phi3":
            assert groups == {("qkv_proj",), ("o_proj",), ("gate_up_proj",), ("down_proj",), ("lm_head",)}
        else:
            assert groups == {
                ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",), ("lm_head",),
            }  # fmt: skip


def test_every_linear_layer_is_in_exactly_one_group() -> None:
    for arch in ARCHITECTURES:
        model = tiny_model(arch)
        # One that no forward reaches stands alone.
        model.model.layers[0].mlp.spare = torch.nn.Linear(32, 4)
        paths = [path for group in gated.shared_inputs(model) for path in group]
        linear = [path for path, module in model.named_modules() if type(module) is torch.nn.Linear]
        assert sorted(paths) == sorted(linear)
        assert ["model.layers.0.mlp.spare"] in gated.shared_inputs(model)


class _Unusual(torch.nn.Module):
    """A layer that is called with two inputs, one whose weight is read past it, and one beside the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, 6)
        self.twice, self.beside, self.read = (torch.nn.Linear(6, 6, bias=False) for _ in range(3))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.embed(input_ids)
        once = self.beside(x) + self.twice(x)
        return self.twice(once) + torch.nn.functional.linear(x, self.read.weight.type(x.dtype))


@torch.inference_mode()
def test_layers_that_are_used_in_unusual_ways_compute_what_they_did(tmp_path: Path) -> None:
    model = _Unusual().double()
    assert sorted(gated.shared_inputs(model)) == [["beside"], ["twice"]]
    ids = torch.randint(10, (1, 4))
    expected = model(ids)
    factors = LowRank(torch.randn(2, 6), torch.randn(6, 2), 0.5)
    with pytest.raises(FamilyError, match=r"tensor read: .*without calling the layer.*leave it out of target_modules"):
        gated.install(
            copy.deepcopy(model), Bank([LowRankMember("m", tmp_path, {"read": factors})]), torch.float64, True
        )
    gate = gated.install(model, Bank([LowRankMember("m", tmp_path, {"twice": factors})]), torch.float64, True)
    gate.open(None)
    torch.testing.assert_close(model(ids), expected)
    # The values of a gated layer's weight are not there to be read.
    assert model.twice.weight.dtype == torch.float64 and model.twice.weight.shape == (6, 6)
    with pytest.raises(RuntimeError, match="the layer has to be called"):
        torch.nn.functional.linear(torch.zeros(1, 6).double(), model.twice.weight)


def test_strangers_are_refused_by_name(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    (member,) = _members(base, [{}], 1)
    modules = dict(member.modules)
    modules["model.layers.7.self_attn.q_proj"] = next(iter(modules.values()))
    with pytest.raises(ValueError, match=r"model\.layers\.7\.self_attn\.q_proj"):
        _gate(base, [LowRankMember("m0", member.path, modules)])


def test_nbytes_counts_each_group_once(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    members = _members(base, [{"r": 4}], 1)
    model, _ = _gate(base, members, torch.float32)
    linear = sum(out * inner for out, inner in read_architecture(base).linear.values())
    factors = members[0].numel()
    # Block-structured expand matrices hold zeros: three blocks of q/k/v and two of gate/up.
    held = gated.nbytes(model)
    assert 4 * (linear + factors) <= held <= 4 * (linear + 4 * factors)


def test_an_input_seen_twice_is_computed_twice(tmp_path: Path) -> None:
    """The product of a group is shared between its layers, never between two calls of one layer."""
    base = write_tiny_base(tmp_path / "base")
    model, gate = _gate(base, _members(base, [{}], 1), torch.float32)
    attention = model.model.layers[0].self_attn
    x = torch.randn(1, 5, 32)
    gate.open(None)
    plain = attention.q_proj(x)
    gate.open(torch.ones(5, 1))
    merged = attention.q_proj(x)
    assert not torch.equal(plain, merged)
    assert torch.equal(attention.q_proj(x), merged)
    # A forward that broke off between two layers of a group leaves nothing behind for the next one.
    gate.open(None)
    assert torch.equal(attention.q_proj(x.clone()), plain)
