"""Prompts as token ids: their check and their schema."""

from __future__ import annotations

from typing import Any

TokenIds = tuple[int, ...]


def token_ids(value: Any) -> TokenIds:
    """A non-empty list of token ids; whether they are in the vocabulary is for the model to say."""
    if not value or any(type(token) is not int or not 0 <= token < 1 << 31 for token in value):
        raise ValueError("allowed: a non-empty list of token ids, whole numbers >= 0")
    return tuple(value)


IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31},
    "minItems": 1,
}
