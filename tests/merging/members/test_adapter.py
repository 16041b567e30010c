import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import (
    ARCHITECTURES,
    rewrite_json,
    rewrite_tensors,
    write_lora_member,
    write_tiny_base,
)
from transformers import AutoModelForCausalLM

from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import CONFIG, WEIGHTS, is_peft_folder, load_peft
from ladle.merging.members.adapter_tensors import Weights

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"), "llama", seed=5, tie=True)


@pytest.fixture(scope="module")
def shapes(base: Path) -> dict[str, tuple[int, int]]:
    return read_architecture(base).linear


def weights_of(base: Path) -> Weights:
    """The base's weights by name, read by transformers; tied ones too."""
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(base).state_dict()
    return state.get


def merged_by_peft(base: Path, member: Path) -> dict[str, torch.Tensor]:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), member)
    return dict(model.double().merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "alpha": 8},
        {"r": 3, "alpha": 7, "use_rslora": True},
        {"r": 2, "alpha": 4, "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\..*": 3}, "alpha_pattern": {"q_proj": 1}},
        {"r": 2, "alpha": 4, "rank_pattern": {"^model.layers.0.self_attn.k_proj": 5}},
        {"r": 4, "alpha": 4, "target_modules": ["lm_head", "v_proj"]},
        {"r": 4, "alpha": 4, "target_modules": r".*layers\.1.*_proj"},
    ],
    ids=["plain", "rslora", "patterns", "anchored", "lm_head", "regex"],
)
def test_deltas_equal_pefts(tmp_path: Path, base: Path, shapes: Any, options: dict[str, Any], seed: int) -> None:
    path = write_lora_member(tmp_path / "member", base, seed, **options)
    member = load_peft(path, "m", shapes, base=weights_of(base))
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).state_dict()
    after = merged_by_peft(base, path)
    moved = {name.removesuffix(".weight") for name in after if not torch.equal(after[name], before[name])}
    moved -= {"model.embed_tokens"}  # PEFT's merge writes through the tie; served, the head alone moves
    assert set(member.modules) == moved
    for module, delta in member.modules.items():
        expected = after[f"{module}.weight"] - before[f"{module}.weight"]
        torch.testing.assert_close(delta.delta(torch.float64), expected, rtol=1e-9, atol=1e-12)
    assert member.numel() == sum(d.a.numel() + d.b.numel() for d in member.modules.values())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_linear_modules_of_every_architecture_load(tmp_path: Path, arch: str, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", arch, seed)
    linear = read_architecture(base).linear
    member = load_peft(write_lora_member(tmp_path / "member", base, seed), "m", linear)
    assert set(member.modules) == set(linear) - {"lm_head"}


def test_rank_is_the_largest(tmp_path: Path, base: Path, shapes: Any) -> None:
    path = write_lora_member(tmp_path / "m", base, r=2, rank_pattern={"o_proj": 7})
    assert load_peft(path, "m", shapes).rank == 7
    assert is_peft_folder(path) and not is_peft_folder(base)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(
    tmp_path: Path, base: Path, shapes: Any, options: dict[str, Any], key: str
) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"], **options)
    with pytest.raises(FamilyError, match=f"{CONFIG}: {key}"):
        load_peft(path, "m", shapes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"an_option_of_the_future": 3}, "an_option_of_the_future"),
        ({"r": 0}, "r"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern"),
    ],
)
def test_configs_that_change_the_arithmetic_are_refused(
    tmp_path: Path, base: Path, shapes: Any, changes: dict[str, Any], key: str
) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"])
    rewrite_json(path / CONFIG, **changes)
    with pytest.raises(FamilyError, match=f"{CONFIG}: {key}:"):
        load_peft(path, "m", shapes)


def test_options_that_are_switched_off_pass(tmp_path: Path, base: Path, shapes: Any) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"])
    rewrite_json(path / CONFIG, an_option_of_the_future=None, another=False, lists=[], maps={})
    assert load_peft(path, "m", shapes).rank == 4


def tensors(value: float, rows: int = 4, columns: int = 32) -> torch.Tensor:
    return torch.full((rows, columns), value)


@pytest.mark.parametrize(
    ("changes", "tensor", "reason"),
    [
        ({f"{Q}.lora_A.weight": tensors(math.nan)}, f"{Q}.lora_A.weight", "NaN"),
        ({f"{Q}.lora_B.weight": tensors(math.inf, 32, 4)}, f"{Q}.lora_B.weight", "infinite"),
        ({f"{Q}.lora_A.weight": tensors(1.0, 5)}, f"{Q}.lora_A.weight", "rank 4"),
        ({f"{Q}.lora_A.weight": tensors(1.0, 4, 31)}, f"{Q}.lora_A.weight", "shape [4, 31]"),
        ({f"{Q}.lora_B.weight": tensors(1.0, 33, 4)}, f"{Q}.lora_B.weight", "shape [33, 4]"),
        ({f"{Q}.lora_A.weight": None}, f"{Q}.lora_A.weight", "missing"),
        ({f"{Q}.lora_B.weight": None}, f"{Q}.lora_B.weight", "missing"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int64)}, f"{Q}.lora_A.weight", "int64"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(32)}, f"{Q}.lora_magnitude_vector", "DoRA"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": tensors(1.0)},
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "embedding",
        ),
        ({f"{Q}.bias": torch.ones(32)}, f"{Q}.bias", "bias"),
        ({"base_model.model.lm_head.weight": tensors(1.0)}, "base_model.model.lm_head.weight", "modules_to_save"),
        ({"model.layers.0.lora_A.weight": tensors(1.0)}, "model.layers.0.lora_A.weight", "not a LoRA factor"),
        (
            {
                "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": tensors(1.0),
                "base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight": tensors(1.0, 32, 4),
            },
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
            "no linear module model.layers.9.self_attn.q_proj",
        ),
    ],
)
def test_broken_tensors_are_named_with_their_file(
    tmp_path: Path, base: Path, shapes: Any, changes: dict[str, torch.Tensor | None], tensor: str, reason: str
) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"])
    rewrite_tensors(path / WEIGHTS, changes)
    with pytest.raises(FamilyError) as caught:
        load_peft(path, "m", shapes)
    assert caught.value.file == str(path / WEIGHTS) and caught.value.tensor == tensor
    assert reason in caught.value.reason
    assert tensor in str(caught.value) and WEIGHTS in str(caught.value)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, ["lm_head.base_layer.weight"]),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, ["lm_head.weight"]),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
            ["lm_head.weight", "model.embed_tokens.weight"],
        ),
    ],
)
def test_copies_of_the_bases_layers_must_equal_them_bit_for_bit(
    tmp_path: Path, tie: bool, options: dict[str, Any], copies: list[str], seed: int
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed, tie=tie)
    shapes, weights = read_architecture(base).linear, weights_of(base)
    path = write_lora_member(tmp_path / "m", base, seed, **options)
    saved = load_file(path / WEIGHTS)
    assert {f"base_model.model.{copy}" for copy in copies} == {name for name in saved if ".lora_" not in name}
    assert load_peft(path, "m", shapes, base=weights).rank == 4
    for copy in copies:
        tensor = saved[f"base_model.model.{copy}"].clone()
        tensor[7, 3] += 1e-3
        rewrite_tensors(path / WEIGHTS, {f"base_model.model.{copy}": tensor})
        with pytest.raises(
            FamilyError, match="1 of 10240 values differ from the base's.*ladle merge BASE --adapter"
        ) as caught:
            load_peft(path, "m", shapes, base=weights)
        assert caught.value.tensor == f"base_model.model.{copy}"
        rewrite_tensors(path / WEIGHTS, {f"base_model.model.{copy}": saved[f"base_model.model.{copy}"]})


@pytest.mark.parametrize("grow", [3, -2])
def test_copies_may_have_rows_for_other_tokens_than_the_base(
    tmp_path: Path, base: Path, shapes: Any, grow: int, seed: int
) -> None:
    path = write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj"])
    embedding = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach()
    rows = torch.cat([embedding, torch.randn(3, 32)])[: len(embedding) + grow].clone()
    name = "base_model.model.model.embed_tokens.weight"
    rewrite_tensors(path / WEIGHTS, {name: rows, "base_model.model.lm_head.weight": rows.to(torch.bfloat16)})
    member = load_peft(path, "m", shapes, base=weights_of(base))
    assert len(member.notes) == 2 and f"{len(rows)} rows" in member.notes[1]


@pytest.mark.parametrize("grow", [3, -2])
def test_factors_of_a_resized_output_head_are_used_for_the_tokens_of_the_base(
    tmp_path: Path, base: Path, shapes: Any, grow: int, seed: int
) -> None:
    path = write_lora_member(tmp_path / "m", base, seed, target_modules=["lm_head"])
    name = "base_model.model.lm_head.lora_B.weight"
    b = load_file(path / WEIGHTS)[name]
    rewrite_tensors(path / WEIGHTS, {name: torch.cat([b, torch.randn(3, 4)])[: len(b) + grow].clone()})
    member = load_peft(path, "m", shapes, base=weights_of(base), head="lm_head")
    used = min(len(b), len(b) + grow)
    assert torch.equal(member.modules["lm_head"].b[:used], b[:used]) and not member.modules["lm_head"].b[used:].any()
    assert f"{used} are used" in member.notes[-1]
    with pytest.raises(FamilyError, match="but \\[320, 4\\] follows"):  # any other layer has the rows that it has
        load_peft(path, "m", shapes, base=weights_of(base), head="other")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "does not begin with base_model.model."),
        (f"{Q}.lora_A.default.weight", "save_pretrained"),
        ("base_model.model.classifier.weight", "no such weight"),
        (f"{Q}.lora_magnitude_vector", "DoRA"),
        ("base_model.model.ranknum", "not a LoRA factor"),
    ],
)
def test_unknown_names_are_told_why(tmp_path: Path, base: Path, shapes: Any, name: str, reason: str, seed: int) -> None:
    path = write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj"])
    rewrite_tensors(path / WEIGHTS, {name: torch.ones(4, 32)})
    with pytest.raises(FamilyError) as caught:
        load_peft(path, "m", shapes, base=weights_of(base))
    assert caught.value.tensor == name and reason in caught.value.reason
    assert "is not supported" in caught.value.reason or "modules_to_save is" not in caught.value.reason


@pytest.mark.parametrize("rank", [0, -1, 2.5])
def test_a_rank_of_nothing_is_a_clear_error(tmp_path: Path, base: Path, shapes: Any, rank: float, seed: int) -> None:
    path = write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj", "v_proj"])
    rewrite_json(path / CONFIG, rank_pattern={"q_proj": rank})
    if rank == 0:
        rewrite_tensors(
            path / WEIGHTS, {f"{Q}.lora_A.weight": torch.ones(0, 32), f"{Q}.lora_B.weight": torch.ones(32, 0)}
        )
    with pytest.raises(FamilyError, match="rank_pattern: .* must be a whole number >= 1"):
        load_peft(path, "m", shapes)


def test_a_git_lfs_pointer_says_what_to_do(tmp_path: Path, base: Path, shapes: Any) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"])
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for name in (WEIGHTS, CONFIG):
        (path / name).write_bytes(pointer)
        with pytest.raises(FamilyError, match="git lfs pull"):
            load_peft(path, "m", shapes)


def test_pickles_truncation_and_missing_files(tmp_path: Path, base: Path, shapes: Any) -> None:
    path = write_lora_member(tmp_path / "m", base, target_modules=["q_proj"])
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(FamilyError, match="safetensors"):
        load_peft(path, "m", shapes)
    (path / WEIGHTS).unlink()
    (path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FamilyError, match="pickle"):
        load_peft(path, "m", shapes)
    (path / CONFIG).write_text(json.dumps(["r"]))
    with pytest.raises(FamilyError, match="JSON object"):
        load_peft(path, "m", shapes)
    (path / CONFIG).unlink()
    with pytest.raises(FamilyError, match=CONFIG):
        load_peft(path, "m", shapes)
