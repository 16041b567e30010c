"""Schemas say no more than what binds an answer: a keyword that nobody knows is a slip of the pen, and refused.

Which of the known keywords can be followed is for llguidance to say; it refuses the others by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ONE = (
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_PLAIN = (
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "const", "dependentRequired", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "format", "id", "maxContains", "maximum", "maxItems", "maxLength",
    "maxProperties", "minContains", "minimum", "minItems", "minLength", "minProperties", "multipleOf", "pattern",
    "required", "type", "uniqueItems",
)  # fmt: skip
# What says nothing of the answer; ``discriminator`` points at what ``oneOf`` says already.
_NOTES = (
    "$comment", "contentEncoding", "contentMediaType", "default", "deprecated", "description", "discriminator",
    "example", "examples", "readOnly", "title", "writeOnly",
)  # fmt: skip
_KNOWN = frozenset((*_ONE, *_MANY, *_NAMED, *_PLAIN, *_NOTES))


def unknown_keyword(schema: Any) -> tuple[str, str] | None:
    """The path of the first keyword that is none, such as ``properties.age``, and the keyword; None if all are known.

    Keywords that begin with ``x-`` are notes, by OpenAPI's custom; ``x-guidance`` is not, for it changes how llguidance
    reads a schema.
    """
    todo: list[tuple[str, Any]] = [("", schema)]
    while todo:
        path, part = todo.pop()
        if not isinstance(part, dict):
            continue
        for keyword, value in part.items():
            if keyword not in _KNOWN and (not keyword.startswith("x-") or keyword == "x-guidance"):
                return path, keyword
            todo.extend((f"{path}.{step}" if path else step, found) for step, found in _inside(keyword, value))
    return None


def _inside(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    if keyword in _NAMED and isinstance(value, dict):
        yield from ((f"{keyword}.{name}", found) for name, found in value.items())
    elif keyword in _MANY and isinstance(value, list):
        yield from ((f"{keyword}[{index}]", found) for index, found in enumerate(value))
    elif keyword in _ONE:
        yield keyword, value
