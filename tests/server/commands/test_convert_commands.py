"""Adapters that cannot be mixed in a forward pass: the command that the refusal names makes members of them."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import rewrite_tensors, write_lora_member, write_tiny_base
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.streaming_merge import Merge
from ladle.server.commands import compress, merge

app = typer.Typer()
app.command("merge")(merge.command)
app.command("compress")(compress.command)
LORA = "adapter_model.safetensors"
ADAPTERS: dict[str, Callable[[Path, Path, int], Any]] = {}


def run(command: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def adapter(build: Callable[[Path, Path, int], Any]) -> None:
    ADAPTERS[build.__name__] = build


@adapter
def dora(folder: Path, base: Path, seed: int) -> None:
    write_lora_member(folder, base, seed, use_dora=True, target_modules=["q_proj", "down_proj"])
    names = [name for name in load_file(folder / LORA) if "magnitude" in name]
    rewrite_tensors(folder / LORA, {name: load_file(folder / LORA)[name] * 1.3 for name in names})


@adapter
def trained_embeddings(folder: Path, base: Path, seed: int) -> None:
    write_lora_member(folder, base, seed, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    tensors = load_file(folder / LORA)
    moved = {
        name: t + 0.01 * torch.randn_like(t) for name, t in tensors.items() if "embed" in name or "lm_head" in name
    }
    rewrite_tensors(folder / LORA, moved)


@adapter
def biases(folder: Path, base: Path, seed: int) -> None:
    write_lora_member(folder, base, seed, bias="all", target_modules=["q_proj"])
    tensors = load_file(folder / LORA)
    rewrite_tensors(folder / LORA, {name: t + 0.1 for name, t in tensors.items() if name.endswith("bias")})


@adapter
def ia3(folder: Path, base: Path, seed: int) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "ia3" in name:
            parameter.data = torch.rand_like(parameter) + 0.5
    model.save_pretrained(folder)


def family_of(root: Path, path: str) -> Family:
    (root / "family.toml").write_text(
        f'name = "own"\nobjectives = ["a"]\n[base]\nmodel = "base"\n[[policies]]\nname = "m"\npath = "{path}"\n'
        'objective = "a"\n'
    )
    return load_family(root)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("tie", [False, True], ids=["apart", "tied"])
def test_the_command_that_a_refusal_names_makes_a_member_of_it(tmp_path: Path, kind: str, tie: bool, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "qwen2", seed, tie=tie)
    ADAPTERS[kind](tmp_path / "m", base, seed)
    with pytest.raises(FamilyError) as refused:
        family_of(tmp_path, "m")
    commands = re.findall(r"`ladle ([^`]+)`", str(refused.value))
    assert [command.split()[0] for command in commands] == ["merge", "compress"] and "\n" not in str(refused.value)
    given = dict.fromkeys(("BASE",), str(tmp_path))
    whole, low = (re.sub(r"\bBASE\b", given["BASE"], command) for command in commands)
    run(whole.replace("DIR", str(tmp_path / "whole")))
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "m")
    expected = model.merge_and_unload().state_dict()
    family = family_of(tmp_path, "whole")
    merged = dict(Merge.of(family).tensors({"m": 1.0}, torch.float32))
    assert merged.keys() <= expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    untied = not torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert ("lm_head.weight" in merged) == untied
    told = json.loads(run(low.replace("DIR", str(tmp_path / "low")).replace("N", "32") + " --json")[0])
    family = family_of(tmp_path, "low")
    lost = {tensor["name"] for tensor in told["not_representable"]}
    assert bool(lost) == (kind != "dora"), "embeddings and biases are no linear weights"
    for path, delta in family.low_rank["m"].modules.items():
        moved = expected[f"{path}.weight"].double() - family.base.tensor(f"{path}.weight").double()
        torch.testing.assert_close(delta.delta(torch.float64), moved, rtol=1e-3, atol=1e-4)


def test_what_is_no_adapter_and_what_says_nothing_is_refused(tmp_path: Path, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed)
    out = tmp_path / "out"
    _, error = run(f"merge {base} --adapter {base} --out {out}", 1)
    assert "adapter_config.json: no such file; only adapters of PEFT" in error
    write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj"])
    _, error = run(f"merge {base} --adapter {tmp_path / 'm'} --out {out} --strength 2", 2)
    assert "strength" in error and "is merged as it is, without this option" in error
    _, error = run(f"compress {base} --out {out} --rank 3", 2)
    assert "--adapter, one of the two" in error
    rewrite_tensors(
        tmp_path / "m" / LORA, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(3, 3)}
    )
    _, error = run(f"merge {base} --adapter {tmp_path / 'm'} --out {out}", 1)
    assert "PEFT cannot merge it" in error and not out.exists()


def test_pickles_become_safetensors_by_the_command_that_is_named(tmp_path: Path, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed)
    folder = write_lora_member(tmp_path / "m", base, seed, target_modules=["q_proj"])
    before = load_file(folder / LORA)
    torch.save(before, folder / "adapter_model.bin")
    (folder / LORA).unlink()
    whole = tmp_path / "whole"
    whole.mkdir()
    torch.save(load_file(base / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "config.json").write_bytes((base / "config.json").read_bytes())
    for name, made in (("m", folder / LORA), ("whole", tmp_path / "whole-safetensors" / "model.safetensors")):
        with pytest.raises(FamilyError, match="is a pickle, which is never loaded: convert it with") as refused:
            family_of(tmp_path, name)
        (command,) = re.findall(r"`python (-c [^`]+)`", str(refused.value))
        exec(shlex.split(command)[1], {})
        assert made.is_file()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(folder / LORA).items())
    assert family_of(tmp_path, "m").low_rank and family_of(tmp_path, "whole-safetensors").full


def test_added_tokens_are_left_out(tmp_path: Path, seed: int) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", seed, tie=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(323, mean_resizing=False)
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, lora)
    for parameter in tuned.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter) if parameter.requires_grad else 0
    tuned.save_pretrained(tmp_path / "m")
    _, said = run(f"merge {base} --adapter {tmp_path / 'm'} --out {tmp_path / 'whole'}")
    assert "323 rows of embeddings; the base's 320 are kept" in said
    merged = load_file(tmp_path / "whole" / "model.safetensors")
    expected = tuned.merge_and_unload().state_dict()
    torch.testing.assert_close(merged["lm_head.weight"], expected["lm_head.weight"][:320])
    assert family_of(tmp_path, "whole").full
