"""A client's schema as the grammar library gets it: without what binds nothing, with numbers that are kept exactly."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

from ladle.merging.exceptions import InputError
from ladle.server.fields.json_schema_keywords import MANY, NAMED, NOTES, ONE, inside, unknown_keyword
from ladle.server.fields.schema_alternatives import told_apart, types_of
from ladle.server.fields.schema_formats import FORMATS, formats
from ladle.server.fields.schema_names import combines, other_names
from ladle.server.fields.schema_numbers import NumberError, bounds, check_constant, counts
from ladle.server.fields.schema_patterns import ahead
from ladle.server.text.pattern_classes import rust_pattern

_MOST_PARTS = 50_000  # objects, lists, texts and numbers in a schema
_MOST_TEXT = 1 << 20  # characters of all names and texts in it
_DEEP = 100  # schemas within schemas; the library's reader takes about as many
# Names of a map that are dates and the like; every one that these match is one.
_NAME_FORMATS = {
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "date": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$",
    "time": r"^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
    "date-time": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$",
}
_SCALARS: dict[str | None, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    None: (str, int, float, bool, type(None)),
}  # fmt: skip
_MOST_FACTOR = 2**32 - 1  # of the common multiple of all factors; beyond it the library computes another one
_MOST_UNIQUE = 5  # values of which lists without repetition are written out: 326 lists
# What judges properties and items of an object or a list beside the schema that holds it.
_BRINGING = {"$dynamicRef", "$ref", "allOf", "anyOf", "dependencies", "dependentSchemas", "else", "if", "oneOf", "then"}
_NOTHING: tuple[Any, ...] = (True, {})  # a schema that everything fulfils


def bind_schema(schema: dict[str, Any], field: str) -> dict[str, Any]:
    """A schema with the same answers, or fewer, which the library keeps to.

    Raises:
        InputError: an unknown keyword, a number that cannot be kept exactly, schemas nested without end; it names
            ``field`` and the path in the schema.
    """
    _require_small(schema, field)
    unknown = unknown_keyword(schema)
    if unknown is not None:
        path, keyword = unknown
        raise InputError(_at(field, path), keyword, "keywords of JSON Schema, and notes whose names begin with x-")
    bound = _Binder(field, schema).bind(schema, "", 0)
    assert isinstance(bound, dict)
    return bound


def _require_small(schema: dict[str, Any], field: str) -> None:
    """Raise InputError for a schema that takes long only to read: its compiler would not manage it in its time."""
    parts, size = 0, 0
    todo: list[Any] = [schema]
    while todo and parts <= _MOST_PARTS and size <= _MOST_TEXT:
        part = todo.pop()
        parts += 1
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, dict):
            size += sum(map(len, part))
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)
    if todo:
        allowed = f"schemas of at most {_MOST_PARTS} parts and {_MOST_TEXT} characters"
        raise InputError(field, "a schema", allowed)


class _Binder:
    def __init__(self, field: str, root: dict[str, Any]) -> None:
        self._field = field
        self._root = root
        self._factors: set[Fraction] = set()
        self._combines = combines(root)
        self._whole = _asks_for_integers(root)

    def bind(self, schema: Any, path: str, depth: int) -> Any:
        """``schema``, which stands at ``path``."""
        if not isinstance(schema, dict):
            return schema
        if depth > _DEEP:
            raise InputError(self._field, "a schema", f"schemas that are nested at most {_DEEP} deep")
        part = {key: value for key, value in schema.items() if key not in NOTES and not key.startswith("x-")}
        if depth and any(_same(part.get("not"), nothing) for nothing in _NOTHING):
            return False  # what fulfils nothing, as tools write it
        self._leave_out(part, path)
        try:
            for keyword in ("const", "enum"):
                if keyword in part:
                    check_constant(keyword, part[keyword], self._whole)
            counts(part)
            bounds(part)
        except NumberError as error:
            raise InputError(_at(self._field, path, error.keyword), error.value, str(error)) from None
        self._factor(part, path)
        if _may_repeat(part):
            allowed = "at most one more than the properties that are required, where other names are free"
            raise InputError(_at(self._field, path, "minProperties"), part["minProperties"], allowed)
        pattern = part.get("pattern")
        if isinstance(pattern, str):
            if ends_in_lone_backslash(pattern):
                allowed = "a pattern that does not end in a lone backslash"
                raise InputError(_at(self._field, path, "pattern"), pattern, allowed)
            part["pattern"] = rust_pattern(pattern)
        names = part.get("patternProperties")
        if isinstance(names, dict):
            for name in filter(ends_in_lone_backslash, names):
                allowed = "patterns that do not end in a lone backslash"
                raise InputError(_at(self._field, path, "patternProperties"), name, allowed)
            read = {rust_pattern(name): inner for name, inner in names.items()}
            # Two that are the same then are left to the library, which refuses them.
            part["patternProperties"] = read if len(read) == len(names) else names
        for keyword, value in part.items():
            if keyword in NAMED and isinstance(value, dict):
                part[keyword] = {
                    name: self.bind(inner, _at(path, f"{keyword}.{name}"), depth + 1) for name, inner in value.items()
                }
            elif keyword in MANY and isinstance(value, list):
                part[keyword] = [
                    self.bind(inner, _at(path, f"{keyword}[{index}]"), depth + 1) for index, inner in enumerate(value)
                ]
            elif keyword in ONE:
                part[keyword] = self.bind(value, _at(path, keyword), depth + 1)
        if not self._combines:
            other_names(part)
        return part

    def _factor(self, part: dict[str, Any], path: str) -> None:
        """Refuse a ``multipleOf`` that the library cannot bring together with the others. Not every two meet in one
        number; those that do need not stand beside each other."""
        factor = part.get("multipleOf")
        if isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor > 0:
            self._factors.add(Fraction(repr(factor)))
            scale = math.lcm(*(each.denominator for each in self._factors))
            if len(self._factors) > 1 and math.lcm(*(int(each * scale) for each in self._factors)) > _MOST_FACTOR:
                allowed = f"numbers whose common multiple, in units of their last place, is at most {_MOST_FACTOR}"
                raise InputError(_at(self._field, path, "multipleOf"), factor, allowed)

    def _leave_out(self, part: dict[str, Any], path: str) -> None:
        """Take keywords out of ``part`` that bind nothing as they stand there."""
        ahead(part)
        formats(part)
        if part.get("uniqueItems") is False or (part.get("uniqueItems") is True and _few(part)):
            del part["uniqueItems"]
        if part.get("uniqueItems") is True:
            self._unique(part)
        if "contains" not in part or (part.get("minContains") == 0 and "maxContains" not in part):
            for keyword in ("contains", "minContains", "maxContains"):
                part.pop(keyword, None)
        for keyword in ("unevaluatedProperties", "unevaluatedItems", "additionalItems"):
            if any(_same(part.get(keyword), nothing) for nothing in _NOTHING):
                del part[keyword]
        if not isinstance(part.get("items"), list):
            part.pop("additionalItems", None)
        if "if" not in part or not ("then" in part or "else" in part):
            for keyword in ("if", "then", "else"):
                part.pop(keyword, None)
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            if part.get(keyword) == {}:
                del part[keyword]
        _unevaluated(part)
        if part.get("not") is False:
            del part["not"]
        if "propertyNames" in part:
            self._names(part)
        if isinstance(part.get("oneOf"), list) and "anyOf" not in part:
            apart = told_apart(part["oneOf"], self._meant)
            if apart is not None:
                del part["oneOf"]
                part["anyOf"] = apart

    def _unique(self, part: dict[str, Any]) -> None:
        """Lists without repetition of a few values written out, each order of each choice of them."""
        if part.get("type") != "array" or part.keys() - {"type", "items", "minItems", "maxItems", "uniqueItems"}:
            return
        values = self._values(part.get("items"))
        least, most = part.get("minItems", 0), part.get("maxItems", _MOST_UNIQUE)
        if not 0 < len(values) <= _MOST_UNIQUE or type(least) is not int or type(most) is not int:
            return
        lengths = range(max(least, 0), min(most, len(values)) + 1)
        lists = [list(items) for length in lengths for items in itertools.permutations(values, length)]
        if lists:
            part.clear()
            part["enum"] = lists

    def _values(self, schema: Any) -> list[Any]:
        """All values that ``schema`` allows, no two equal; none where they cannot be seen, or are many."""
        meaning = self._meant(schema)
        meaning = {key: value for key, value in meaning.items() if key not in NOTES and not key.startswith("x-")}
        kind = meaning.pop("type", None)
        if not meaning and kind in ("boolean", "null"):
            return [False, True] if kind == "boolean" else [None]
        values = (
            [meaning["const"]]
            if set(meaning) == {"const"}
            else meaning.get("enum")
            if set(meaning) == {"enum"}
            else None
        )
        if not isinstance(values, list) or len(values) > 2 * _MOST_UNIQUE:
            return []
        types = _SCALARS.get(kind) if kind is None or isinstance(kind, str) else None
        if types is None or not all(type(value) in types for value in values):
            return []
        return list({(isinstance(value, bool), value): value for value in values}.values())

    def _meant(self, schema: Any) -> dict[str, Any]:
        """``schema``, or what it only points at; empty where that is no object."""
        for _ in range(10):
            if not (
                isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and schema.keys() <= {"$ref", *NOTES}
            ):
                break
            schema = _local(self._root, schema["$ref"])
        return schema if isinstance(schema, dict) else {}

    def _names(self, part: dict[str, Any]) -> None:
        """``propertyNames`` left out where every string is a name, and written otherwise where names are listed or
        follow a pattern."""
        rule = part["propertyNames"]
        if rule is True:
            del part["propertyNames"]
        if not isinstance(rule, dict):
            return
        rule = self._meant(rule)
        rule = {key: value for key, value in rule.items() if key not in NOTES and not key.startswith("x-")}
        kinds = rule.pop("type", "string")
        if kinds != "string" and not (isinstance(kinds, list) and "string" in kinds):
            return
        if rule.get("format") not in FORMATS:
            rule.pop("format", None)
        if rule.get("minLength") == 0:
            del rule["minLength"]
        if not rule:
            del part["propertyNames"]
        elif not part.keys() & {"properties", "patternProperties"}:
            values = part.get("additionalProperties", True)
            allowed = [rule["const"]] if set(rule) == {"const"} else rule.get("enum") if set(rule) == {"enum"} else None
            if isinstance(allowed, list) and all(isinstance(name, str) for name in allowed):
                part["properties"] = dict.fromkeys(allowed, values)
            elif set(rule) == {"format"} and rule["format"] in _NAME_FORMATS:
                part["patternProperties"] = {_NAME_FORMATS[rule["format"]]: values}
            elif set(rule) == {"pattern"}:
                part["patternProperties"] = {rule["pattern"]: values}
            elif set(rule) <= {"minLength", "maxLength"}:
                least, most = rule.get("minLength", 0), rule.get("maxLength", 1 << 20)
                if type(least) is not int or type(most) is not int or not 0 <= least <= most <= 1 << 20:
                    return
                part["patternProperties"] = {f"^[\\s\\S]{{{least},{most}}}$": values}
            else:
                return
            part["additionalProperties"] = False
            del part["propertyNames"]


def _unevaluated(part: dict[str, Any]) -> None:
    """Say of properties and items that nothing else has judged what holds for them, as of additional ones: that is the
    same where ``part`` brings no other schemas together."""
    if not part.keys() & _BRINGING and "unevaluatedProperties" in part:
        part.setdefault("additionalProperties", part.pop("unevaluatedProperties"))
    if not part.keys() & (_BRINGING | {"contains"}) and "unevaluatedItems" in part:
        rest = "additionalItems" if isinstance(part.get("items"), list) else "items"
        part.setdefault(rest, part.pop("unevaluatedItems"))


def _asks_for_integers(root: dict[str, Any]) -> bool:
    """Whether any part does."""
    todo: list[Any] = [root]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if part.get("type") == "integer" or "integer" in _list(part.get("type")):
                return True
            todo.extend(each for keyword, value in part.items() for _, each in inside(keyword, value))
    return False


def _may_repeat(part: dict[str, Any]) -> bool:
    """Whether an object could come to its ``minProperties`` by saying a name twice: nothing keeps names that are not
    listed from being said again, and whoever reads the object has one property less."""
    least, free = (
        part.get("minProperties"),
        part.get("additionalProperties") is not False or "patternProperties" in part,
    )
    if type(least) is not int or not free or "object" not in (types_of(part) or {"object"}):
        return False
    listed = part.get("properties")
    listed = listed if isinstance(listed, dict) else {}
    return least - len({name for name in _list(part.get("required")) if isinstance(name, str) and name in listed}) > 1


def ends_in_lone_backslash(pattern: str) -> bool:
    """Whether a regular expression ends in a backslash that escapes nothing."""
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def _few(part: dict[str, Any]) -> bool:
    most = part.get("maxItems")
    return isinstance(most, (int, float)) and not isinstance(most, bool) and most <= 1


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _local(root: dict[str, Any], reference: str) -> Any:
    """What a ``$ref`` within the document points at; None where that is nothing."""
    if not reference.startswith("#/"):
        return None
    target: Any = root
    for step in reference[2:].split("/"):
        target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
    return target


def _at(*steps: str) -> str:
    return ".".join(step for step in steps if step)
