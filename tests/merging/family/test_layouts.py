"""The commonest layouts of adapters and checkpoints on the hub, each built small, as docs/families.md has them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import OF_PARAMETERS, write_expert_member, write_mixture, write_parameter_member
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import (
    rewrite_json,
    rewrite_tensors,
    tiny_tokenizer,
    write_full_member,
    write_lora_member,
    write_tiny_base,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ladle.merging.checkpoints.checkpoint_reader import SINGLE
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.streaming_merge import Merge

DOCS = Path(__file__).parents[3] / "docs" / "families.md"
LORA, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
HIDDEN = 32

LAYOUTS: dict[str, Callable[[Path, Path, int], "Expected"]] = {}


class Expected:
    """What becomes of a layout.

    Attributes:
        weights: transformers' and PEFT's own state of the member, by name; None where it is refused.
        reason: what the refusal says; of a member that loads, what a warning says, if there is one.
        head: (weight, bias) of an explicit value.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor] | None = None,
        reason: str = "",
        head: tuple[torch.Tensor, float] | None = None,
    ) -> None:
        self.weights, self.reason, self.head = weights, reason, head


def layout(row: str) -> Callable[[Callable[[Path, Path, int], Expected]], Callable[[Path, Path, int], Expected]]:
    def add(build: Callable[[Path, Path, int], Expected]) -> Callable[[Path, Path, int], Expected]:
        LAYOUTS[row] = build
        return build

    return add


def by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), folder)
    return dict(model.double().merge_and_unload().state_dict())


def by_transformers(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).state_dict())


@layout("PEFT: LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})
    return Expected(by_peft(base, folder))


@layout("PEFT: LoRA on lm_head")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["lm_head", "q_proj"])
    assert f"{PREFIX}lm_head.base_layer.weight" in load_file(folder / LORA)
    return Expected(by_peft(base, folder))


@layout("PEFT: LoRA on experts (`target_parameters`)")
def _(folder: Path, base: Path, seed: int) -> Expected:
    shutil.rmtree(base)
    write_mixture(base, "qwen3_moe", seed, tie_word_embeddings=False)
    write_parameter_member(folder, base, seed, ("experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"))
    return Expected(by_peft(base, folder))


@layout("PEFT: LoRA on experts one by one")
def _(folder: Path, base: Path, seed: int) -> Expected:
    shutil.rmtree(base)
    write_mixture(base, "mixtral", seed, tie_word_embeddings=False)
    write_expert_member(folder, "mixtral", seed)
    return Expected(by_peft(base, folder))


@layout("PEFT: layers trained whole")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    moved = load_file(folder / LORA)[f"{PREFIX}lm_head.weight"] + 0.01
    rewrite_tensors(folder / LORA, {f"{PREFIX}lm_head.weight": moved})
    return Expected(reason="ladle merge BASE --adapter .*ladle compress BASE --adapter")


@layout("PEFT: DoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, use_dora=True, target_modules=["q_proj"])
    return Expected(reason="use_dora: True .*ladle merge BASE --adapter .*ladle compress BASE --adapter")


@layout("PEFT: PiSSA, OLoRA, LoftQ")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["q_proj"])
    rewrite_json(folder / CONFIG, init_lora_weights="pissa")
    return Expected(reason="init_lora_weights: 'pissa' changes the base; convert it to plain LoRA")


@layout("PEFT: IA3, LoHa, prompt tuning")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["q_proj"])
    rewrite_json(folder / CONFIG, peft_type="IA3")
    return Expected(reason="peft_type: 'IA3' is not supported.*ladle merge BASE --adapter")


@layout("PEFT before 0.8: a pickle")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["q_proj"])
    torch.save(load_file(folder / LORA), folder / "adapter_model.bin")
    (folder / LORA).unlink()
    return Expected(reason="adapter_model.bin is a pickle, which is never loaded: convert it with `python -c")


@layout("TRL: SFT with added tokens")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(folder)
    return Expected(by_peft(base, folder), r"2 tokens more than the base's tokenizer \('\[PAD\]', '<tool_call>'\)")


@layout("TRL: SFT with resized embeddings")
def _(folder: Path, base: Path, seed: int) -> Expected:
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = model.get_input_embeddings().weight.detach().clone()
    write_lora_member(folder, base, seed)
    expected = by_peft(base, folder)
    name = f"{PREFIX}model.embed_tokens.weight"
    rewrite_tensors(folder / LORA, {name: torch.cat([rows, torch.randn(2, HIDDEN)])})
    return Expected(expected, "322 rows and the base 320; the 320 that both have are equal")


@layout("TRL: RewardTrainer, LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    peft_model: Any = get_peft_model(model, lora)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)
    merged = peft_model.double().merge_and_unload().state_dict()
    merged["lm_head.weight"] = AutoModelForCausalLM.from_pretrained(base).state_dict()["lm_head.weight"].double()
    return Expected({k: v for k, v in merged.items() if "score" not in k}, head=(merged["score.weight"], 0.0))


@layout("TRL: value head, full")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    weight, bias = torch.randn(1, HIDDEN), torch.randn(1)
    rewrite_tensors(folder / SINGLE, {"v_head.summary.weight": weight, "v_head.summary.bias": bias})
    return Expected(by_transformers(folder), head=(weight, float(bias)))


@layout("LLaMA-Factory: LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed, target_modules=["q_proj", "v_proj", "down_proj"])
    tiny_tokenizer().save_pretrained(folder)
    (folder / "training_args.bin").write_bytes(b"\x80")
    (folder / "trainer_state.json").write_text("{}")
    shutil.copytree(folder, folder / "checkpoint-10")
    return Expected(by_peft(base, folder))


@layout("LLaMA-Factory: reward model, LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed)
    weight, bias = torch.randn(1, HIDDEN), torch.randn(1)
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, folder / "value_head.safetensors")
    return Expected(by_peft(base, folder), head=(weight, float(bias)))


@layout("Unsloth: LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed)
    rewrite_json(
        folder / CONFIG,
        base_model_name_or_path="unsloth/base-unsloth-bnb-4bit",
        auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
    )
    tiny_tokenizer().save_pretrained(folder)
    return Expected(by_peft(base, folder))


@layout("Unsloth: merged_16bit")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed, dtype=torch.bfloat16)
    rewrite_json(
        folder / "config.json", unsloth_version="2025.1", unsloth_fixed=True, _attn_implementation_autoset=True,
        tokenizer_class="LlamaTokenizer", attention_dropout=0.1, max_position_embeddings=1024, an_own_key=[1, {"a": 2}],
    )  # fmt: skip
    return Expected(
        by_transformers(folder), "config.json: differs .*an_own_key, max_position_embeddings, unsloth_fixed"
    )


@layout("axolotl: full, in shards")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed, shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    (folder / "debug.log").write_text("")
    return Expected(by_transformers(folder))


@layout("transformers before 4.32: buffers")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    inverse = 1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)
    mask = torch.ones(1, 1, 8, 8).tril()
    rewrite_tensors(
        folder / SINGLE,
        {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": inverse.clone() for n in range(2)}
        | {"transformer.h.0.attn.bias": mask, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    )
    return Expected(by_transformers(folder), "is left out: the model computes it")


@layout("OpenRLHF: reward model")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    weight = torch.randn(1, HIDDEN)
    expected = by_transformers(folder)
    rewrite_tensors(folder / SINGLE, {"score.weight": weight, "lm_head.weight": None})
    rewrite_json(folder / "config.json", value_head_prefix="score", mean=0.1, std=1.0)
    own = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).state_dict()["lm_head.weight"]
    return Expected(expected | {"lm_head.weight": own}, "value_head_prefix", (weight, 0.0))


@layout("sequence classifier, full")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    weight, bias = torch.randn(1, HIDDEN), torch.randn(1)
    expected = by_transformers(folder)
    rewrite_tensors(folder / SINGLE, {"score.weight": weight, "score.bias": bias})
    rewrite_json(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"})
    return Expected(expected, head=(weight, float(bias)))


@layout("classifier with several labels")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    rewrite_tensors(folder / SINGLE, {"score.weight": torch.randn(3, HIDDEN)})
    return Expected(
        reason=r"score.weight: .*shape \[3, 32\]; one output over the model's 32 is needed", head=(torch.ones(1), 0)
    )


@layout("mlx-lm: LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).state_dict()
    factors = {}
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        out, inner = expected[f"{path}.weight"].shape
        a, b = torch.randn(inner, 3) * 0.1, torch.randn(3, out) * 0.1
        factors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        # mlx-lm: y = x W^T + scale * (x a) b
        expected[f"{path}.weight"] = expected[f"{path}.weight"] + 20.0 * (a.double() @ b.double()).T
    folder.mkdir()
    save_file(factors, folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "model": "org/base", "num_layers": 2,
              "lora_parameters": {"rank": 3, "scale": 20.0, "dropout": 0.0}}  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
    return Expected(dict(expected))


@layout("mlx-lm, bitsandbytes, GPTQ, AWQ: quantised")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_full_member(folder, base, seed)
    rewrite_json(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    return Expected(reason="quantization: a member.s weights must be plain, not quantised")


@layout("any: another base's LoRA")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed)
    rewrite_json(folder / CONFIG, base_model_name_or_path="org/another-one")
    return Expected(by_peft(base, folder), "member m was trained on 'org/another-one' .*but the base here is base")


@layout("any: cloned without Git LFS")
def _(folder: Path, base: Path, seed: int) -> Expected:
    write_lora_member(folder, base, seed)
    (folder / LORA).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    return Expected(reason="git lfs pull")


def family_of(root: Path, explicit: bool) -> Family:
    entry = '[[values]]\nname = "m"\nkind = "explicit"\n' if explicit else '[[policies]]\nname = "m"\n'
    (root / "family.toml").write_text(
        f'name = "own"\nobjectives = ["a"]\n[base]\nmodel = "base"\n{entry}path = "m"\nobjective = "a"\n'
    )
    return load_family(root)


@pytest.mark.filterwarnings(OF_PARAMETERS)
@pytest.mark.parametrize("row", LAYOUTS)
def test_every_layout_is_served_equally_or_refused_with_the_cure(tmp_path: Path, row: str, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed, tie=False)
    expected = LAYOUTS[row](tmp_path / "m", base, seed + 1)
    if expected.weights is None:
        with pytest.raises(FamilyError) as caught:
            family_of(tmp_path, expected.head is not None)
        assert re.search(expected.reason, str(caught.value)), caught.value
        assert "\n" not in str(caught.value)
        return
    family = family_of(tmp_path, expected.head is not None)
    merged = dict(Merge.of(family).tensors({"m": 1.0}, torch.float64))
    assert set(merged) <= set(expected.weights)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected.weights[name], rtol=1e-9, atol=1e-9, msg=name)
    if expected.reason:
        assert len(family.warnings) == 1 and re.search(expected.reason, family.warnings[0]), family.warnings
    else:
        assert family.warnings == ()
    if expected.head is not None:
        head = family.heads["m"]
        assert torch.equal(head.weight, expected.head[0].reshape(-1).float()) and head.bias == expected.head[1]


def test_the_table_in_the_docs_has_every_layout() -> None:
    """Row by row: the name, and whether it loads."""
    rows = re.findall(r"^\| ([^|]+?) \| (loads|refused)", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(LAYOUTS)
    refused = {name for name, verdict in rows if verdict == "refused"}
    assert refused == {
        "PEFT: layers trained whole", "PEFT: DoRA", "PEFT: PiSSA, OLoRA, LoftQ", "PEFT: IA3, LoHa, prompt tuning",
        "PEFT before 0.8: a pickle", "classifier with several labels", "mlx-lm, bitsandbytes, GPTQ, AWQ: quantised",
        "any: cloned without Git LFS",
    }  # fmt: skip
