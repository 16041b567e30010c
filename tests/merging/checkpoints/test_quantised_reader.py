"""Quantised checkpoints: the weights that they stand for, a bank on top of them, and what is not read."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import write_mixture
from quantised import LAYOUTS, write_quantised
from safetensors.torch import load_file
from tiny_engine import alone, build, make_request, random_prompt
from tiny_models import rewrite_json, rewrite_tensors, write_full_member, write_lora_member, write_tiny_base
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from ladle.guidance.check import report_family
from ladle.merging.checkpoints.architecture import open_weights, read_architecture
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.adapter_merge import merge_adapter
from ladle.merging.merges.export import export

FILE = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path, seed: int) -> Path:
    return write_tiny_base(tmp_path / "plain", "qwen3", seed, torch.bfloat16, tie=False)


def family_of(root: Path, base: Path, member: Path) -> Family:
    (root / "family.toml").write_text(
        f'name = "own"\nobjectives = ["a"]\n[base]\nmodel = "{base}"\n[[policies]]\nname = "m"\npath = "{member}"\n'
        'objective = "a"\n'
    )
    return load_family(root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bank_on_a_quantised_base_answers_as_on_the_plain_one(
    tmp_path: Path, base: Path, layout: str, seed: int
) -> None:
    rng = random.Random(seed)
    folder = write_quantised(base, tmp_path / "q", layout, seed)
    plain = tmp_path / "q-plain"
    weights, _ = open_weights(folder, read_architecture(folder))
    expected = load_file(plain / FILE)
    assert set(weights.names) == set(expected)
    for name in weights.names:
        assert torch.equal(weights.tensor(name), expected[name]) and weights.dtype(name) == expected[name].dtype, name
    member = write_lora_member(tmp_path / "m", base, seed)
    quantised, whole = family_of(tmp_path, folder, member), family_of(tmp_path, plain, member)
    assert quantised.base_revision != whole.base_revision
    assert LAYOUTS[layout][1]["quant_method"] in report_family(quantised).text()
    request = make_request("r", random_prompt(rng, 3, 20), {"m": 0.7}, max_tokens=5, temperature=1.0, seed=seed)
    answers = [
        [(o.token, o.logprob) for o in alone(build(family), request)] for family in (quantised, whole)
    ]  # fmt: skip
    assert answers[0] == answers[1]
    if layout == "nf4":
        merged = load_file(export(quantised, {"m": 0.0}, tmp_path / "out") / FILE)
        assert all(torch.equal(merged[name], expected[name]) for name in expected)
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
        byte = build(quantised, quantize="int8")
        assert alone(byte, request)[-1].error is None


def test_fp8_is_what_transformers_makes_of_it_experts_too(tmp_path: Path, seed: int) -> None:
    base = write_mixture(tmp_path / "plain", "qwen3_moe", seed, moe_intermediate_size=32, tie_word_embeddings=False)
    folder = write_quantised(base, tmp_path / "q", "fp8", seed)
    config = FineGrainedFP8Config(weight_block_size=(16, 32), dequantize=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)
    weights, _ = open_weights(folder, read_architecture(folder))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(weights.tensor(name).bfloat16(), tensor.bfloat16()), name


def test_what_cannot_stand_on_a_quantised_base_is_refused_with_the_cure(tmp_path: Path, base: Path, seed: int) -> None:
    folder = write_quantised(base, tmp_path / "q", "awq", seed)
    with pytest.raises(FamilyError, match=r"'m' has full weights, and the base is quantised \(awq, 4 bits\).*compress"):
        family_of(tmp_path, folder, write_full_member(tmp_path / "full", base, seed))
    dora = write_lora_member(tmp_path / "dora", base, seed, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(FamilyError, match="quantization_config: PEFT merges into plain weights; give the plain base"):
        merge_adapter(folder, dora, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, r"quant_method: 'hqq': this form is not read; give the plain checkpoint, or one"),
        ({"quant_method": "compressed-tensors", "sparsity_config": 3}, "quant_method: 'compressed-tensors': malformed"),
        ({"quant_method": "gptq", "bits": 3}, "bits: 3: 2, 4 and 8 are read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version: 'gemv of 4 bits': gemm of 4 bits is read"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
    ],
)
def test_forms_that_are_not_read_are_named(tmp_path: Path, base: Path, config: dict[str, Any], message: str) -> None:
    rewrite_json(base / "config.json", quantization_config=config)
    with pytest.raises(FamilyError, match=f"quantization_config.*{message}") as caught:
        read_architecture(base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "part", "made", "message"),
    [
        ("gptq", "scales", None, "missing, though other tensors of this weight are there"),
        ("gptq", "scales", torch.zeros(1, 3).half(), "q_proj.*(do not fit|lacks|shape)"),
        ("pack-quantized", "weight_packed", torch.zeros(32, 3, dtype=torch.int32), "3 words per row for 32 inputs"),
        ("fp8", "weight_scale_inv", None, "float8_e4m3fn without a scale beside it"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", torch.zeros(4, dtype=torch.uint8), "no state of bitsandbytes"),
    ],
)
def test_a_broken_part_is_named(
    tmp_path: Path, base: Path, layout: str, part: str, made: torch.Tensor | None, message: str, seed: int
) -> None:
    folder = write_quantised(base, tmp_path / "q", layout, seed)
    rewrite_tensors(folder / FILE, {f"model.layers.0.self_attn.q_proj.{part}": made})
    with pytest.raises(FamilyError, match=message):
        weights, _ = open_weights(folder, read_architecture(folder))
        weights.check_finite()
