"""JSON by the standard, for bodies and for JSON that stands inside them as text."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic_core import from_json

_GREAT = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{300}")  # only such a number can be beyond what a float holds


def strict_json(text: str) -> Any:
    """The JSON value in ``text``: no NaN, no half of a surrogate pair, no number beyond what a float holds, and at most
    some 200 levels.

    Raises:
        ValueError: says where it breaks.
    """
    value = from_json(text, allow_inf_nan=False)
    if _GREAT.search(text) and not finite(value):
        raise ValueError("a number in it is larger than a float holds")
    return value


def finite(value: Any) -> bool:
    """Whether no number in a JSON value is infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, list) else True


def finite_object(value: dict[str, Any]) -> dict[str, Any]:
    """A validator of free-form objects: they are written out again as JSON, which has no infinity."""
    if not finite(value):
        raise ValueError("a number in it is larger than a float holds")
    return value
