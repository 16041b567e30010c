"""Prompts as token ids: their check and their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ladle.merging.exceptions import InputError

TokenIds = tuple[int, ...]


def token_ids(value: Any) -> TokenIds:
    """A non-empty list of token ids; whether they are in the vocabulary is for the model to say."""
    if not value or not _whole(value):
        raise ValueError("allowed: a non-empty list of token ids, whole numbers >= 0")
    return tuple(value)


def any_token_ids(value: Any) -> TokenIds:
    """A list of token ids, which may be empty."""
    if not isinstance(value, list) or not _whole(value):
        raise ValueError("allowed: a list of token ids, whole numbers >= 0")
    return tuple(value)


def require_known(ids: TokenIds, vocabulary: int, field: str) -> None:
    """Raise InputError, field ``field[index]``, for the first id that is not in a vocabulary of so many tokens."""
    if max(ids, default=0) >= vocabulary:
        index, token = next((index, token) for index, token in enumerate(ids) if token >= vocabulary)
        raise InputError(f"{field}[{index}]", token, f"token ids from 0 to {vocabulary - 1}")


def _whole(values: Sequence[Any]) -> bool:
    # By functions that are written in C, none of which takes long: there may be hundreds of thousands.
    return not values or (set(map(type, values)) == {int} and 0 <= min(values) <= max(values) < 1 << 31)


IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31},
    "minItems": 1,
}
