"""A family of every kind of member, so small that a server answers hundreds of requests a second: for runs in which
what matters is what a server does, and not what a model says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ladle.benchmarks.faults.hill_surface import write_hill_surface
from ladle.benchmarks.random_family import EXPERTS, OBJECTIVES, RANK, write_random_family

NAME = "random"
_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": True,
}  # fmt: skip
_AMATEUR = {**_SHAPE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_stress_family(folder: Path) -> Path:
    """``write_random_family`` of two layers, and besides policies (one of them with full weights), explicit values, a
    PBLoRA, an amateur, a router that can defer, and a response surface: every method can be served.

    Returns ``folder``.
    """
    write_random_family(folder, _SHAPE, torch.float32)
    base = folder / "base"
    (base / "chat_template.jinja").write_text(_TEMPLATE)
    entries: list[tuple[str, dict[str, Any]]] = []
    for objective, full in zip(OBJECTIVES, (False, True), strict=True):
        policy = folder / f"only-{objective}"
        if full:
            _full_member(base, policy)
        else:
            shutil.copytree(folder / f"bone-{objective}", policy)
        entries.append(("policies", {"name": policy.name, "path": policy.name, "objective": objective}))
    for index, objective in enumerate(OBJECTIVES):
        score = folder / f"score-{objective}"
        shutil.copytree(folder / f"value-{objective}", score)
        save_file({"weight": _drawn(index, _SHAPE["hidden_size"])}, score / "value_head.safetensors")
        entries.append(("values", {"name": score.name, "path": score.name, "kind": "explicit", "objective": objective}))
    _pblora(folder / "value-one", folder / "arm")
    entries.append(("values", {"name": "arm", "path": "arm", "kind": "implicit"}))
    other = write_random_family(folder / "other", _AMATEUR, torch.float32)
    (other / "base").rename(folder / "amateur")
    shutil.rmtree(other)
    entries.append(("models", {"name": "amateur", "model": "amateur", "amateur": True}))
    head = {"weight": _drawn(7, len(EXPERTS), _SHAPE["hidden_size"]), "defer": _drawn(8, _SHAPE["hidden_size"])}
    save_file(head, folder / "router" / "router_head.safetensors")
    with (folder / "family.toml").open("a") as manifest:
        for table, entry in entries:
            # JSON's strings and booleans are TOML's.
            lines = [f"[[{table}]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items()), ""]
            manifest.write("\n".join(lines))
    write_hill_surface(folder)
    return folder


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def _full_member(base: Path, folder: Path) -> None:
    """A checkpoint near ``base``."""
    shutil.copytree(base, folder)
    file = folder / "model.safetensors"
    moved = {name: tensor + 0.05 * _drawn(9, *tensor.shape) for name, tensor in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})


def _pblora(lora: Path, folder: Path) -> None:
    """A PBLoRA as PARM saves it, on the layers of the adapter ``lora`` and of its rank."""
    r1, r2 = RANK - 4, 4
    factors: Mapping[str, torch.Tensor] = load_file(lora / "adapter_model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in factors.items():
        module, _, side = name.removesuffix(".weight").rpartition(".lora_")
        tensors[f"{module}.pblora_{side}"] = tensor
        tensors[f"{module}.pblora_W1"] = _drawn(10, r1, r1)
        tensors[f"{module}.pblora_W2"] = _drawn(11, len(OBJECTIVES), r2 * r2)
    config = json.loads((lora / "adapter_config.json").read_text())
    kept = {"task_type": config["task_type"], "target_modules": config["target_modules"]}
    own = {"peft_type": "PBLORA", "r1": r1, "r2": r2, "obj_num": len(OBJECTIVES), "lora_alpha": r2}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**kept, **own}))
    save_file(tensors, folder / "adapter_model.safetensors")
