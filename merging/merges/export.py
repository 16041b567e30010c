"""Offline merges: a checkpoint folder that transformers loads like any other."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ladle.merging.checkpoints.new_folder import new_folder, require_free, require_space
from ladle.merging.checkpoints.reader import INDEX, SINGLE, read_json, require_finite
from ladle.merging.errors import InputError
from ladle.merging.family.family import Family
from ladle.merging.merges.merge import Merge

PROVENANCE = "merge.json"
# What is copied from the base beside its config: text and tokenizers, never weights or code.
_COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def export(
    family: Family,
    coefficients: Mapping[str, float],
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 2_000_000_000,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write W0 + sum_j c_j (W_j - W0) as a checkpoint; low-rank and full members may be mixed.

    The folder appears complete or not at all. A LoRA on a tied output head unties it: the head is written as a tensor
    of its own and the config says so.

    Args:
        family: base and members.
        coefficients: by member.
        out: a folder that does not exist or is empty.
        dtype: of floating tensors; None keeps the base's.
        max_shard_bytes: a checkpoint above this is sharded; also bounds the memory used.
        provenance: added to ``merge.json``, for example method and preference.
        progress: called with (bytes done, bytes in all).

    Returns:
        The folder.

    Raises:
        InputError: ``out`` is taken, or a member is unknown.
        FamilyError: the merge gives NaN or infinity (float16 overflows at 65504), naming the tensor; the disk is full.
    """
    target = require_free(out)
    for name, value in coefficients.items():
        if name not in family.mergeable:
            raise InputError(f"coefficients.{name}", value, f"the members {', '.join(family.mergeable)}")
    merge = Merge.of(family)
    with new_folder(target) as folder:
        _write_weights(merge, coefficients, folder, dtype, max_shard_bytes, progress)
        _write_config(family, folder, dtype, untied=bool(merge.unties(coefficients)))
        for name in _COMPANIONS:
            if (family.base_path / name).is_file():
                shutil.copyfile(family.base_path / name, folder / name)
        document = {
            "family": family.name,
            "base": family.manifest.base.model,
            "base_revision": family.base_revision,
            "coefficients": dict(coefficients),
            **(provenance or {}),
        }
        (folder / PROVENANCE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return target


def _write_weights(
    merge: Merge,
    coefficients: Mapping[str, float],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    layout = merge.layout(coefficients, dtype)
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in layout.items():
        if shards[-1] and size + spec.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    total = sum(spec.nbytes for spec in layout.values())
    require_space(folder, total)
    done = 0
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = layout[name].empty()
            merge.tensor_into(tensors[name], name, coefficients)
            require_finite(tensors[name], folder / file, name)
            weight_map[name] = file
            done += layout[name].nbytes
            if progress:
                progress(done, total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_config(family: Family, folder: Path, dtype: torch.dtype | None, untied: bool) -> None:
    config = read_json(family.base_path / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    if untied:
        config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
