"""Schemas say no more than what binds an answer: a keyword that nobody knows is a slip of the pen, and refused.

Which of the known keywords can be followed is for llguidance to say; it refuses the others by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ONE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
_PLAIN = (
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$ref", "$schema", "const", "dependencies", "dependentRequired",
    "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "id", "maxContains", "maximum", "maxItems", "maxLength",
    "maxProperties", "minContains", "minimum", "minItems", "minLength", "minProperties", "multipleOf", "pattern",
    "required", "type", "uniqueItems",
)  # fmt: skip
# What says nothing of the answer; ``discriminator`` points at what ``oneOf`` says already. ``nullable`` is OpenAPI's
# and means nothing to JSON Schema; ``strict`` and the descriptions of choices are what tools write beside it.
NOTES = frozenset({
    "$comment", "contentEncoding", "contentMediaType", "contentSchema", "default", "deprecated", "description",
    "discriminator", "enumDescriptions", "enumNames", "errorMessage", "example", "examples", "externalDocs",
    "markdownDescription", "markdownEnumDescriptions", "nullable", "propertyOrdering", "readOnly", "strict", "title",
    "writeOnly", "xml",
})  # fmt: skip
_KNOWN = frozenset((*ONE, *MANY, *NAMED, *_PLAIN, *NOTES))


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
            todo.extend((f"{path}.{step}" if path else step, inner) for step, inner in inside(keyword, value))
    return None


def inside(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas that are the value of ``keyword``, each with its path from there."""
    if keyword in NAMED and isinstance(value, dict):
        yield from ((f"{keyword}.{name}", part) for name, part in value.items())
    elif keyword in MANY and isinstance(value, list):
        yield from ((f"{keyword}[{index}]", part) for index, part in enumerate(value))
    elif keyword in ONE:
        yield keyword, value
