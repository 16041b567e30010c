"""Prompts as token ids: their check and their schema."""

from __future__ import annotations

from typing import Any

TokenIds = tuple[int, ...]


def token_ids(value: Any) -> TokenIds:
    """A non-empty list of token ids; whether they are in the vocabulary is for the model to say."""
    # By functions that are written in C: there may be hundreds of thousands.
    if not value or set(map(type, value)) != {int} or not 0 <= min(value) <= max(value) < 1 << 31:
        raise ValueError("allowed: a non-empty list of token ids, whole numbers >= 0")
    return tuple(value)


IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31},
    "minItems": 1,
}
