"""Which of several models a member was grown from, by what its folder says of sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ladle.merging.checkpoints.checkpoint_files import has_checkpoint
from ladle.merging.checkpoints.checkpoint_reader import read_json
from ladle.merging.members.adapter import WEIGHTS, is_peft_folder
from ladle.merging.members.mlx_adapter import MLX_WEIGHTS
from ladle.merging.members.router_head import ROUTER_HEAD

# Linear layers that read the hidden state, in whatever architecture has them.
_READERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "gate_proj", "up_proj", "q_a_proj")
_COMPARED = ("model_type", "hidden_size", "num_hidden_layers")


def model_that_fits(folder: Path, models: Mapping[str, Path]) -> str:
    """The first of ``models`` (folder by name) of whose size the member in ``folder`` is; the first one where none is,
    and what loads it says why.

    Raises:
        FamilyError: a config cannot be read.
    """
    configs = {name: read_json(path / "config.json") for name, path in models.items()}
    for name, config in configs.items():
        if _fits(folder, config):
            return name
    return next(iter(models))


def _fits(folder: Path, config: Mapping[str, Any]) -> bool:
    if not is_peft_folder(folder) and has_checkpoint(folder) and (folder / "config.json").is_file():
        own = read_json(folder / "config.json")
        return all(_said(own, key) == _said(config, key) for key in _COMPARED)
    return _width(folder) in (None, _said(config, "hidden_size"))


def _said(config: Mapping[str, Any], key: str) -> Any:
    """A value of a config, or of the language model's part of it."""
    inner = config.get("text_config")
    return inner.get(key, config.get(key)) if isinstance(inner, dict) and key != "model_type" else config.get(key)


def _width(folder: Path) -> int | None:
    """The size of the hidden state that factors or a router's head read; None where nothing tells."""
    for name, side, ends in ((WEIGHTS, 1, ".lora_A.weight"), (MLX_WEIGHTS, 0, ".lora_a"), (ROUTER_HEAD, 1, "weight")):
        if not (folder / name).is_file():
            continue
        with safe_open(folder / name, "pt") as tensors:
            for key in sorted(tensors.keys()):
                module = key.removesuffix(ends).rpartition(".")[2]
                if key.endswith(ends) and (name == ROUTER_HEAD or module in _READERS):
                    shape = tensors.get_slice(key).get_shape()
                    return int(shape[side]) if len(shape) == 2 else None
    return None
