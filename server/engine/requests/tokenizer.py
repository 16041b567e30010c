"""The tokenizer of a base, as its folder has it, and the ids that end a text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ladle.merging.checkpoints.checkpoint_files import read_json
from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.checkpoints.vocabulary import TOKENIZER
from ladle.merging.exceptions import FamilyError

_SAID = 300  # characters of what a library says


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in ``folder``. Code that lies there is not run, and nobody is asked whether it may be.

    Raises:
        FamilyError: transformers cannot read it, or only with such code.
    """
    config = folder / "tokenizer_config.json"
    try:
        with loading(f"reading the tokenizer of {folder}"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes and files fail in their own ways
        if not (folder / TOKENIZER).is_file():
            reason = "no such file, and nothing else in the folder that a fast tokenizer could be made of"
            raise FamilyError(folder / TOKENIZER, reason) from error
        said = " ".join(str(error).split())[:_SAID]
        # What is no sentence says little without its kind: 'added_tokens'.
        reason = said if " " in said else f"{type(error).__name__} {said}".strip()
        if config.is_file() and read_json(config).get("auto_map"):
            raise FamilyError(config, f"its custom code is not run, and without it: {reason}") from error
        raise FamilyError(folder, f"this tokenizer cannot be loaded: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FamilyError(config, f"{type(tokenizer).__name__} is no fast tokenizer; a tokenizer.json makes it one")
    return tokenizer


def eos_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every id that ends a text, from the generation config and the tokenizer."""
    ids: set[int] = set()
    for value in (getattr(model, "generation_config", None), tokenizer):
        eos = getattr(value, "eos_token_id", None)
        ids.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return frozenset(int(value) for value in ids)
