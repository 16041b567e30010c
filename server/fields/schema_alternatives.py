"""Alternatives of a ``oneOf`` that nothing can fulfil at once: those of an ``anyOf``, which can be followed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

_MOST = 256  # branches, each of which is compared with each other one
_SCALARS = (str, int, float, bool, type(None))
_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
Meaning = Callable[[Any], dict[str, Any]]
"""A schema, or what it only points at; empty where that is no object."""


def told_apart(branches: list[Any], meaning: Meaning) -> list[Any] | None:
    """The branches as those of an ``anyOf``.

    They differ in type, in the values that they list, or, objects, in a property that tells them apart and is then
    required. None where that cannot be seen.
    """
    if not branches or len(branches) > _MOST:
        return None
    seen = [meaning(branch) for branch in branches]
    objects = [index for index, branch in enumerate(seen) if types_of(branch) == {"object"}]
    kinds = [_Kinds(branch) for index, branch in enumerate(seen) if index not in objects]
    if objects:
        kinds.append(_Kinds({"type": "object"}))
    if not all(one.apart(other) for one, other in itertools.combinations(kinds, 2)):
        return None
    if len(objects) < 2:
        return branches
    told = [seen[index] for index in objects]
    first = told[0].get("properties")
    for name in first if isinstance(first, dict) else ():
        tags = [_tags(branch, name, meaning) for branch in told]
        if all(tags) and len(set().union(*tags)) == sum(map(len, tags)):
            tagged = dict(zip(objects, (_with(branch, name) for branch in told), strict=True))
            return [tagged.get(index, branch) for index, branch in enumerate(branches)]
    return None


def types_of(schema: dict[str, Any]) -> set[str]:
    """The types that ``schema`` names; integers are numbers."""
    kinds = schema.get("type")
    named = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    return {"number" if kind == "integer" else str(kind) for kind in named}


def _with(branch: dict[str, Any], name: str) -> dict[str, Any]:
    required = branch.get("required")
    return {**branch, "required": [*(required if isinstance(required, list) else ()), name]}


def _tags(branch: dict[str, Any], name: str, meaning: Meaning) -> set[Any]:
    """The values that a property of ``branch`` may have; none where it may have others."""
    properties = branch.get("properties")
    return _listed(meaning(properties.get(name)) if isinstance(properties, dict) else {}) or set()


def _listed(schema: dict[str, Any]) -> set[Any] | None:
    """The values that ``schema`` lists, as what JSON tells apart; None where it lists none, or lists and objects."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, _SCALARS) for value in values):
        return None
    return {(isinstance(value, bool), value) for value in values}


class _Kinds:
    """What of a schema tells its answers from those of others: their types, and what they are, where that is listed."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._types = types_of(schema)
        self._values = _listed(schema)
        if self._values is not None:
            written = {_NAMES[type(value)] for _, value in self._values}
            self._types = self._types & written if self._types else written

    def apart(self, other: _Kinds) -> bool:
        """Whether it can be seen that nothing fulfils both."""
        if self._types and other._types and not self._types & other._types:
            return True
        return self._values is not None and other._values is not None and not self._values & other._values
