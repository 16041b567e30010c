"""Checkpoints whose names differ from the modules of today's transformers, and what transformers makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeds import fresh_seed
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.merging.checkpoints.architecture import open_weights, read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.merges.export import export
from tests.fixtures.tiny_models import save_checkpoint, write_lora_member

_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
RENAMED: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3},
    "gpt_neox": {},
    "granitemoe": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 3, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 3},
    "minimax_m2": {"num_local_experts": 3, "head_dim": 8, "num_experts_per_tok": 2},
}


def write_base(folder: Path, kind: str, seed: int) -> Path:
    """A random model as transformers saves it, which is under the names that its files have had from the start."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SHAPE, **RENAMED[kind])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1 if parameter.ndim == 1 else 0))
    save_checkpoint(model, folder)
    return folder


def write_family_of(root: Path, kind: str, seed: int, *, full: bool) -> Path:
    base = write_base(root / "base", kind, seed)
    if full:
        tensors = load_file(base / "model.safetensors")
        moved = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}
        (root / "m").mkdir()
        save_file(moved, root / "m" / "model.safetensors", metadata={"format": "pt"})
        (root / "m" / "config.json").write_bytes((base / "config.json").read_bytes())
    else:
        modules = ["query_key_value", "dense"] if kind == "gpt_neox" else ["q_proj", "v_proj", "o_proj"]
        write_lora_member(root / "m", base, seed + 1, target_modules=modules)
    lines = ['name = "x"', 'objectives = ["a"]', "[base]", 'model = "base"', "[[policies]]"]
    (root / "family.toml").write_text("\n".join([*lines, 'name = "m"', 'path = "m"', 'objective = "a"', ""]))
    return root


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    values: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return values


@pytest.mark.parametrize("kind", RENAMED)
def test_every_weight_is_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path, kind, fresh_seed())
    weights, architecture = open_weights(base, read_architecture(base))
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in architecture.tied}
    assert set(weights.names) == set(state)
    assert set(weights.names) != set(weights.stored.names), "this kind of checkpoint is to be renamed"
    for name in weights.names:
        assert torch.equal(weights.tensor(name), state[name]) and weights.shape(name) == tuple(state[name].shape)
    ours = architecture.blueprint.build(weights.tensor, architecture.tied, torch.float32, "sdpa")
    assert torch.equal(logits(ours), logits(model))


@pytest.mark.parametrize("kind", RENAMED)
@pytest.mark.parametrize("full", [True, False], ids=["full member", "LoRA"])
def test_merges_are_written_under_the_names_of_the_files(kind: str, full: bool, tmp_path: Path) -> None:
    root = write_family_of(tmp_path, kind, fresh_seed(), full=full)
    out = export(load_family(root), {"m": 1.0}, tmp_path / "out")
    assert set(load_file(out / "model.safetensors")) == set(load_file(root / "base" / "model.safetensors"))
    merged: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    if full:
        expected: Any = AutoModelForCausalLM.from_pretrained(root / "m", dtype=torch.float32)
        assert torch.equal(logits(merged), logits(expected))
    else:
        from peft import PeftModel

        plain = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        assert torch.allclose(logits(merged), logits(PeftModel.from_pretrained(plain, root / "m").eval()), atol=1e-4)


@pytest.mark.parametrize("shape", [None, (3, 3)], ids=["missing", "misshapen"])
def test_one_broken_expert_is_named(shape: tuple[int, ...] | None, tmp_path: Path) -> None:
    base = write_base(tmp_path, "mixtral", fresh_seed())
    file = base / "model.safetensors"
    tensors = load_file(file)
    victim = sorted(name for name in tensors if ".experts.1." in name)[0]
    if shape is None:
        del tensors[victim]
    else:
        tensors[victim] = torch.zeros(shape)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=r"experts") as caught:
        open_weights(base, read_architecture(base))
    assert "model.safetensors" in str(caught.value) and "layers.0" in str(caught.value)


def test_a_layer_without_its_experts_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, "mixtral", fresh_seed())
    file = base / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1.block_sparse_moe.ex" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=r"layers\.1\.mlp\.experts\.\w+: the checkpoint lacks this weight"):
        open_weights(base, read_architecture(base))


def test_a_full_member_without_its_experts_is_refused(tmp_path: Path) -> None:
    root = write_family_of(tmp_path, "mixtral", fresh_seed(), full=True)
    file = root / "m" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.1.block_sparse_moe.ex" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FamilyError, match=r"layers\.1\.mlp\.experts\.\w+: the base has this tensor"):
        load_family(root)


def test_two_names_for_one_weight_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, "gpt_neox", fresh_seed())
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("gpt_neox.layers.0."))
    tensors[name.removeprefix("gpt_neox.")] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FamilyError, match="means the same weight"):
        open_weights(base, read_architecture(base))
