"""Adapters that no forward pass can mix, merged into their base: a checkpoint that is a member like any other.

DoRA, layers that were trained whole, biases, IA3 and whatever else PEFT can merge is done by PEFT itself.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

from ladle.merging.checkpoints.checkpoint_files import has_checkpoint
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, read_json
from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.checkpoints.new_folder import new_folder, require_free
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError
from ladle.merging.members.adapter import WEIGHTS
from ladle.merging.members.adapter_tensors import as_safetensors
from ladle.merging.members.lora_config import CONFIG
from ladle.merging.members.router_head import copy_router_head
from ladle.merging.members.value_head import copy_value_head
from ladle.merging.merges.export import copy_companions

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_tokens.modules_to_save.weight")


def merge_adapter(base: Path, adapter: Path, out: str | Path, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """Write the base in ``base`` with the PEFT adapter in ``adapter`` merged as a checkpoint; sums are float32.

    Args:
        base: folder with safetensors and config.json.
        out: a folder that does not exist or is empty; gets the base's tokenizer and the adapter's heads too.
        dtype: of the weights; None keeps the base's.

    Returns:
        What was left out, in sentences.

    Raises:
        FamilyError: PEFT is not installed, cannot load the adapter on this base, or cannot merge its kind; NaN or
            infinity; the disk is full.
        InputError: ``out`` is taken.
    """
    target = require_free(out)
    if not (adapter / CONFIG).is_file():
        raise FamilyError(adapter / CONFIG, "no such file; only adapters of PEFT are merged here")
    if not (adapter / WEIGHTS).is_file():
        raise FamilyError(adapter / WEIGHTS, f"no such file{as_safetensors(adapter / WEIGHTS)}")
    if read_json(base / "config.json").get("quantization_config"):
        reason = "quantization_config: PEFT merges into plain weights; give the plain base"
        raise FamilyError(base / "config.json", reason)
    try:
        import peft
    except ImportError:
        reason = "merging this adapter takes PEFT; pip install 'ladle[train]' (or peft)"
        raise FamilyError(adapter / CONFIG, reason) from None
    notes: list[str] = []
    with loading(f"merging {adapter}"), warnings.catch_warnings():
        # What PEFT warns of here (tied layers that are merged, patterns of parameters) is what is asked for.
        warnings.simplefilter("ignore")
        model = _load(base, adapter)
        rows = model.get_input_embeddings().weight.shape[0]
        try:
            # An adapter that was trained after the embeddings were resized: the base takes that size for the merge, and
            # its own again after it.
            more = _rows(adapter / WEIGHTS)
            if more is not None and more != rows:
                model.resize_token_embeddings(more, mean_resizing=False)
            merged: Any = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        except Exception as error:  # PEFT refuses in its own ways
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FamilyError(adapter / CONFIG, f"PEFT cannot merge it into {base}: {reason[:300]}") from error
        if more is not None and more != rows:
            merged.resize_token_embeddings(rows, mean_resizing=False)
            notes.append(f"{adapter}: {more} rows of embeddings; the base's {rows} are kept")
        reader = CheckpointReader(base)
        own = next(reader.dtype(name) for name in reader.names if reader.dtype(name).is_floating_point)
        merged = merged.to(dtype or own)
        if merged.config.get_text_config().tie_word_embeddings and not _tied(merged):
            merged.config.get_text_config().tie_word_embeddings = False
            merged.config.tie_word_embeddings = False
        with new_folder(target) as folder:
            merged.save_pretrained(folder)
            CheckpointReader(folder).check_finite()
            copy_companions(base, folder)
            copy_value_head(adapter, folder)
            copy_router_head(adapter, folder)
    return tuple(notes)


def _load(base: Path, adapter: Path) -> Any:
    """The base in float32, as a classifier of one output where the adapter has such a head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not has_checkpoint(base):
        raise FamilyError(base, "no checkpoint in safetensors")
    classifies = read_json(adapter / CONFIG).get("task_type") == "SEQ_CLS"
    kind: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    options = {"num_labels": 1} if classifies else {}
    with loading(f"reading {base}"):
        try:
            return kind.from_pretrained(
                base, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **options
            )
        except Exception as error:  # models refuse configs in their own ways
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FamilyError(base / "config.json", f"transformers cannot load the base: {reason[:300]}") from error


def _rows(file: Path) -> int | None:
    """Token rows of the embeddings in an adapter's file; None where it has none."""
    rows = [len(tensor) for name, tensor in read_tensors(file).items() if name.endswith(_EMBEDDINGS)]
    return max(rows, default=None)


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is None or torch.equal(head.weight, model.get_input_embeddings().weight)
