import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import ARCHITECTURES, VOCAB_SIZE, rewrite_tensors, write_family, write_lora_member
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ladle.merging.checkpoints.checkpoint_reader import INDEX, SINGLE
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import load_family
from ladle.merging.merges.export import PROVENANCE, export


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, seed: int) -> torch.Tensor:
    return model.double().eval()(tokens(seed)).logits.double()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_equal_pefts_in_float64(tmp_path: Path, arch: str, seed: int) -> None:
    root = write_family(tmp_path / "family", arch, seed, n=2, dtype=torch.float64, policies=False)
    family = load_family(root)
    names = ["bone-positive", "bone-simple"]

    def with_peft() -> Any:
        base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64)
        model: Any = PeftModel.from_pretrained(base, root / "adapters" / names[0], adapter_name=names[0])
        model.load_adapter(root / "adapters" / names[1], names[1])
        return model

    def exported(coefficients: dict[str, float], name: str) -> torch.Tensor:
        export(family, coefficients, tmp_path / name)
        return logits(AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto"), seed)

    plain = logits(AutoModelForCausalLM.from_pretrained(root / "base", dtype="auto"), seed)
    for name in names:
        model = with_peft()
        model.set_adapter(name)
        expected = logits(model.merge_and_unload(), seed)
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(exported({name: 1.0}, name), expected, rtol=1e-9, atol=1e-9)
    model = with_peft()
    # PEFT's "cat" takes the root of |w| on both sides in float32 scalars and drops the sign; hence positive weights and
    # a tolerance of float32 rounding in the factors.
    model.add_weighted_adapter(names, [1.3, 0.45], "mix", combination_type="cat")
    model.set_adapter("mix")
    mixed = exported(dict(zip(names, (1.3, 0.45), strict=True)), "mix")
    torch.testing.assert_close(mixed, logits(model.merge_and_unload(), seed), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exported({}, "none"), plain, rtol=0, atol=0)


def test_signed_mixes_of_low_rank_and_full_members(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "family", "llama", seed, n=2, full=("bone-simple",), policies=False)
    family = load_family(root)
    out = export(family, {"bone-positive": 1.75, "bone-simple": -0.75}, tmp_path / "out", dtype=torch.float64)
    parts = {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).state_dict()
        for name, path in {"base": root / "base", "full": root / "adapters/bone-simple"}.items()
    }
    low: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64), root / "adapters/bone-positive"
    )
    parts["low"] = low.double().merge_and_unload().state_dict()
    reference = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float64)
    reference.load_state_dict(
        {
            name: base + 1.75 * (parts["low"][name] - base) - 0.75 * (parts["full"][name] - base)
            for name, base in parts["base"].items()
        }
    )
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.dtype == torch.float64
    torch.testing.assert_close(logits(merged, seed), logits(reference, seed), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_a_lora_on_a_tied_head_unties_it(tmp_path: Path, arch: str, seed: int) -> None:
    root = write_family(tmp_path / "family", arch, seed, n=2, dtype=torch.float64, policies=False, tie=True)
    member = root / "adapters/bone-simple"
    for file in member.iterdir():
        file.unlink()
    write_lora_member(member, root / "base", seed, target_modules=["lm_head", "q_proj"], dtype=torch.float64)
    out = export(load_family(root), {"bone-simple": 1.0, "bone-positive": 0.5}, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.config.tie_word_embeddings is False
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype="auto")
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    model: Any = PeftModel.from_pretrained(base, root / "adapters/bone-positive", adapter_name="a")
    model.load_adapter(member, "b")
    model.add_weighted_adapter(["b", "a"], [1.0, 0.5], "mix", combination_type="cat")
    model.set_adapter("mix")
    # Not merged: merging in place would write through the tie into the embedding.
    torch.testing.assert_close(logits(merged, seed), logits(model, seed), rtol=1e-5, atol=1e-5)
    still_tied = export(load_family(root), {"bone-positive": 1.0}, tmp_path / "tied")
    assert AutoModelForCausalLM.from_pretrained(still_tied).config.tie_word_embeddings is True


@pytest.mark.parametrize("tie", [True, False], ids=["tied base", "untied base"])
def test_full_members_that_tie_otherwise_than_the_base(tmp_path: Path, seed: int, tie: bool) -> None:
    root = write_family(
        tmp_path / "family", "llama", seed, n=2, dtype=torch.float64, full=("bone-simple", "bone-positive"),
        policies=False, tie=tie,
    )  # fmt: skip
    member = root / "adapters/bone-simple"
    config = AutoConfig.from_pretrained(member, tie_word_embeddings=not tie)
    other = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    for file in (*member.glob("*.safetensors"), *member.glob("*.json")):
        file.unlink()
    other.save_pretrained(member)
    family = load_family(root)
    out = export(family, {"bone-simple": 0.75, "bone-positive": -0.5}, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    parts = [
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        for folder in (root / "base", member, root / "adapters/bone-positive")
    ]
    assert torch.equal(parts[0]["lm_head.weight"], parts[0]["model.embed_tokens.weight"]) is tie
    assert torch.equal(parts[1]["lm_head.weight"], parts[1]["model.embed_tokens.weight"]) is not tie
    for name, weight in merged.items():
        base, one, two = (part[name] for part in parts)
        torch.testing.assert_close(weight, base + 0.75 * (one - base) - 0.5 * (two - base), rtol=1e-9, atol=1e-9)


def test_the_folder_is_a_complete_checkpoint(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "family", "llama", seed)
    family = load_family(root)
    steps: list[tuple[int, int]] = []
    out = export(
        family,
        {"bone-positive": 0.5},
        tmp_path / "new" / "out",
        dtype=torch.bfloat16,
        max_shard_bytes=20_000,
        provenance={"method": "bone_soup"},
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1][0] == steps[-1][1] == family.base.nbytes() // 2
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1 and (out / INDEX).is_file() and not (out / SINGLE).exists()
    assert all(shard.stat().st_size < 25_000 for shard in shards)
    assert {oct(file.stat().st_mode & 0o777) for file in out.iterdir()} == {"0o644"}
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token_id == 2 and tokenizer.chat_template
    document = json.loads((out / PROVENANCE).read_text())
    assert document["coefficients"] == {"bone-positive": 0.5} and document["method"] == "bone_soup"
    assert document["base_revision"] == family.base_revision


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "family", "llama", seed, dtype=torch.float16)
    family = load_family(root)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").write_text("x")
    with pytest.raises(InputError, match="out"):
        export(family, {}, taken)
    with pytest.raises(InputError, match=r"coefficients\.nobody"):
        export(family, {"nobody": 1.0}, tmp_path / "out")
    weights = root / "adapters/bone-positive/adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite_tensors(weights, {name: torch.full((32, 2), 6e4)})
    with pytest.raises(FamilyError, match=r"tensor model.layers.0.self_attn.q_proj.weight: .*infinite"):
        export(load_family(root), {"bone-positive": 100.0}, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["family", "taken"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (export(family, {}, empty) / SINGLE).is_file()
