"""Names of properties that a schema does not list. The grammar library tells them from those that it does list, or that
follow a pattern, by how they are written: written with an escape, a listed name passed for another one and took any
value. Names that follow a pattern are written without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ladle.server.fields.json_schema_keywords import inside

_MOST = 20_000  # characters of the listed names of an object; of more, no others are written
_LONGEST = 200
_COMBINED = {"allOf", "anyOf", "oneOf", "$ref"}
_OBJECTS = {"properties", "patternProperties", "additionalProperties", "required", "propertyNames"}


def combines(schema: dict[str, Any]) -> bool:
    """Whether parts of ``schema`` are brought together to one object, in which patterns would meet."""
    todo: list[Any] = [schema]
    while todo:
        part = todo.pop()
        if not isinstance(part, dict):
            continue
        several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
        combined = part.keys() & _COMBINED
        if several or len(combined) > 1 or (combined and part.keys() & _OBJECTS):
            return True
        todo.extend(inner for keyword, value in part.items() for _, inner in inside(keyword, value))
    return False


def other_names(part: dict[str, Any]) -> None:
    """Let the names that ``part`` does not list follow a pattern that no listed name follows. Where names follow
    patterns already, no others are written."""
    others = part.get("additionalProperties", True)
    if others is False or "propertyNames" in part:
        return
    if part.get("patternProperties"):
        part["additionalProperties"] = False
    elif isinstance(part.get("properties"), dict) and part["properties"]:
        names = part["properties"].keys()
        if max(map(len, names)) <= _LONGEST and sum(map(len, names)) <= _MOST:
            part["patternProperties"] = {f"^{_none_of(names)}$": others}
        part["additionalProperties"] = False


def _none_of(names: Iterable[str]) -> str:
    """A regular expression of all texts but ``names``: those that leave their tree, or end before it does."""
    ends = False
    longer: dict[str, list[str]] = {}
    for name in names:
        if name:
            longer.setdefault(name[0], []).append(name[1:])
        else:
            ends = True
    branches = [] if ends else [""]
    heads = "".join(map(_character, longer))
    branches.append(f"[^{heads}][\\s\\S]*" if heads else "[\\s\\S]+")
    branches += [_character(head) + _none_of(rest) for head, rest in longer.items()]
    return f"(?:{'|'.join(branches)})"


def _character(character: str) -> str:
    plain = character.isascii() and character.isalnum()
    return character if plain else f"\\x{{{ord(character):x}}}"
