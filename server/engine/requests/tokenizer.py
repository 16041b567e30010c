"""The tokenizer of a base, as its folder has it, and the ids that end a text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.errors import FamilyError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in ``folder``. Code that lies there is not run, and nobody is asked whether it may be.

    Raises:
        FamilyError: transformers cannot read it, or only with such code.
    """
    file = folder / "tokenizer_config.json"
    try:
        with loading(f"reading the tokenizer of {folder}"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes and files fail in their own ways
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise FamilyError(file, f"this tokenizer cannot be loaded: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FamilyError(file, f"{type(tokenizer).__name__} is no fast tokenizer; a tokenizer.json makes it one")
    return tokenizer


def eos_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every id that ends a text, from the generation config and the tokenizer."""
    ids: set[int] = set()
    for value in (getattr(model, "generation_config", None), tokenizer):
        eos = getattr(value, "eos_token_id", None)
        ids.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return frozenset(int(value) for value in ids)
