"""The ids that end a text."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerFast


def eos_ids(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every id that ends a text, from the generation config and the tokenizer."""
    ids: set[int] = set()
    for value in (getattr(model, "generation_config", None), tokenizer):
        eos = getattr(value, "eos_token_id", None)
        ids.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    return frozenset(int(value) for value in ids)
