"""Offline merges: a checkpoint folder that transformers loads like any other."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ladle.merging.checkpoints.checkpoint_reader import INDEX, SINGLE, read_json, require_finite
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.checkpoints.new_folder import new_folder, require_free, require_space
from ladle.merging.checkpoints.vocabulary import TOKENIZER, tokens_of
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.merges.streaming_merge import Merge, TensorSpec

PROVENANCE = "merge.json"
_MORE_TEMPLATES = "additional_chat_templates"
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
        if name in family.vectors:
            reason = "a steering vector is added to hidden states, so that no checkpoint of weights can hold it"
            raise InputError(f"coefficients.{name}", value, f"the members {', '.join(family.mergeable)}", reason)
        if name not in family.mergeable:
            raise InputError(f"coefficients.{name}", value, f"the members {', '.join(family.mergeable)}")
    # Weights first, then what describes them; nothing is visible under the target's name before all of it is there.
    merge = Merge.of(family)
    with new_folder(target) as folder:
        _write_weights(family.base, merge, coefficients, folder, dtype, max_shard_bytes, progress)
        _write_config(family, folder, dtype, untied=_unties(family, merge, coefficients))
        copy_companions(family.base_path, folder)
        _write_conversation(family, folder)
        document = {
            "family": family.name,
            "base": family.manifest.base.model,
            "base_revision": family.base_revision,
            "coefficients": dict(coefficients),
            **(provenance or {}),
        }
        (folder / PROVENANCE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return target


def copy_companions(base: Path, folder: Path) -> None:
    """Copy what lies beside the base's weights and config: text and tokenizers."""
    for name in _COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for template in sorted((base / _MORE_TEMPLATES).glob("*.jinja")):
        (folder / _MORE_TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(template, folder / _MORE_TEMPLATES / template.name)


def _write_weights(
    base: ConvertedReader,
    merge: Merge,
    coefficients: Mapping[str, float],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    layout = merge.layout(coefficients, dtype)
    # Shards are filled in order; what one conversion of the base made goes into one shard, because it is written back
    # together.
    shards: list[list[list[str]]] = [[]]
    size = 0
    for group in _groups(base, layout):
        nbytes = sum(layout[name].nbytes for name in group)
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += nbytes
    total = sum(spec.nbytes for spec in layout.values())
    require_space(folder, total)
    done = 0
    weight_map: dict[str, str] = {}
    for number, groups in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for group in groups:
            merged = {}
            for name in group:
                merged[name] = layout[name].empty()
                merge.tensor_into(merged[name], name, coefficients)
                require_finite(merged[name], folder / file, name)
                done += layout[name].nbytes
                if progress:
                    progress(done, total)
            # Under the names that the base's own checkpoint has: those are what everybody's loaders know.
            tensors |= base.as_stored(merged) if group[0] in base else merged
        weight_map |= dict.fromkeys(tensors, file)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _groups(base: ConvertedReader, layout: Mapping[str, TensorSpec]) -> list[list[str]]:
    """The names of ``layout``, those together that one conversion makes of tensors in the base's files."""
    groups = [[name for name in group if name in layout] for group in base.groups()]
    return sorted([group for group in groups if group] + [[name] for name in layout if name not in base])


def _unties(family: Family, merge: Merge, coefficients: Mapping[str, float]) -> bool:
    """Whether the config's ties do not hold: for this merge, or for the base itself, which has both weights."""
    means = family.architecture.blueprint.model.all_tied_weights_keys
    return bool(merge.unties(coefficients)) or len(family.architecture.tied) < len(means)


def _write_conversation(family: Family, folder: Path) -> None:
    """What the family says besides the base: its chat template, and the tokens that end an answer."""
    spoken = family.conversation
    if spoken.template is not None:
        (folder / "chat_template.jinja").write_text(spoken.template, encoding="utf-8")
        if spoken.eos_token is not None and (folder / "tokenizer_config.json").is_file():
            config = read_json(folder / "tokenizer_config.json") | {"eos_token": spoken.eos_token}
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if spoken.ends:
        # Added to what the base says already, since this file decides once it names any.
        file = folder / "generation_config.json"
        config = read_json(file) if file.is_file() else {}
        stated = config.get("eos_token_id", read_json(family.base_path / "config.json").get("eos_token_id"))
        ids = {token: number for number, token in tokens_of(family.base_path / TOKENIZER).items()}
        ends = [] if stated is None else stated if isinstance(stated, list) else [stated]
        config["eos_token_id"] = list(dict.fromkeys([*ends, *(ids[token] for token in spoken.ends)]))
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_config(family: Family, folder: Path, dtype: torch.dtype | None, untied: bool) -> None:
    config = read_json(family.base_path / "config.json")
    config.pop("quantization_config", None)  # what is written is plain
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    if untied:
        config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
