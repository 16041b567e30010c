"""Rules between fields, as JSON schemas say them."""

from __future__ import annotations

from typing import Any


def only_with(field: str, needed: str, value: Any = True) -> dict[str, Any]:
    """The rule that ``field``, unless it is 0, null or left out, comes with ``needed`` at ``value``; as a schema."""
    free = {"properties": {field: {"enum": [None, 0]}}}
    return {"anyOf": [free, {"properties": {needed: {"const": value}}, "required": [needed]}]}
