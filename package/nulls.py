"""What null says in a body: that nothing was given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

UNSET: Mapping[str, Any] = {"type": "null"}
"""A JSON schema of what an unknown key of an object may be: null says that nothing was given."""


def without_unset(value: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """``value`` without keys that are null; those in ``known`` stay."""
    return {key: item for key, item in value.items() if item is not None or key in known}


def nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` or null, which leaves a key at its default."""
    described = {key: schema[key] for key in ("description",) if key in schema}
    options = schema.get("anyOf", [{key: schema[key] for key in schema if key not in described}])
    return {**described, "anyOf": [*options, {"type": "null"}]}
