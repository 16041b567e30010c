"""Schemas and regular expressions drawn at random: the shapes of JSON Schema's own test suite, numbers about every
power of two, every operator of regular expressions, nesting and repetition beyond reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_FORMATS = [
    "date",
    "date-time",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "uri-reference",
    "iri",
    "regex",
    "json-pointer",
    "binary",
    "byte",
    "password",
    "path",
    "idn-email",
    "uri-template",
    "base64url",
    "int32",
    "float",
    "unheard-of",
]
_PATTERNS = ["^a+$", "[a-f]{2,4}", "^(x|y)*z?$", "b{2}", r"^\d{3}-\d{2}$", ".", "^$", r"\w+\s\w+", "^[^a]$", "(a*)*b"]
_NAMES = ["a", "b", "name", "", "é", "$ref", "a b", "a.b", "x" * 60]


class SchemaFuzzer:
    """Draws schemas. ``sane``: those that a user may write, of which most can be followed; others are anything."""

    def __init__(self, rng: random.Random, sane: bool = False) -> None:
        self._rng = rng
        self._sane = sane

    def schema(self, depth: int = 3) -> dict[str, Any]:
        """The next schema."""
        rng = self._rng
        kinds: list[Callable[[int], dict[str, Any]]] = [
            self._integer, self._number, self._string, self._choice, self._array, self._object, self._combined,
        ]  # fmt: skip
        if not self._sane:
            kinds += [self._odd, self._deep]
        simple = kinds[:4]
        schema = rng.choice(kinds if depth > 0 else simple)(depth)
        if rng.random() < 0.15:
            schema |= rng.choice(
                [
                    {"title": "T"},
                    {"description": "d"},
                    {"default": 1},
                    {"nullable": True},
                    {"x-note": 1},
                    {"strict": True},
                ]
            )
        return schema

    def number(self) -> int | float:
        """A number about a power of two, or another that is hard to write."""
        rng = self._rng
        if rng.random() < 0.5:
            return rng.choice([1, -1]) * (2 ** rng.randint(0, 70) + rng.randint(-1, 1))
        if rng.random() < 0.5:
            return rng.randint(-1000, 1000)
        return rng.choice(
            [rng.uniform(-10, 10), rng.choice([1, -1]) * 2.0 ** rng.randint(-60, 120), round(rng.uniform(-5, 5), 3),
             -0.0, 0.1, 1e-7, 1e16, 1e22, 3.4028234663852886e38, 5e-324, 1.7976931348623157e308]
        )  # fmt: skip

    def regex(self) -> str:
        """The next regular expression."""
        return self._regex(self._rng.randint(0, 4))

    def _regex(self, depth: int) -> str:
        rng = self._rng
        if depth == 0:
            return rng.choice(
                ["a", "b", ".", r"\d", r"\w", r"\s", r"\b", "^", "$", "[a-z]", "[^a]", "[]", "[a-", r"\p{L}", r"\x41",
                 r"\u{1F327}",
                 "é", "\\", r"\\", "/", '"', "\n", "&", "~", "(?i)a", "(?=a)", "(?!a)", "(?<=a)", r"\1", "(?P<n>a)",
                 "[[:alpha:]]",
                 "[a&&b]", r"\Q", r"\A", r"\z", "#", "-", "]", "}", "{"]
            )  # fmt: skip
        one, other = self._regex(depth - 1), self._regex(depth - 1)
        count = rng.choice([0, 1, 2, 10, 300, 1000, 65536, 2**31, 2**32, 2**63])
        return rng.choice(
            [one + other, f"{one}|{other}", f"({one})*", f"({one})+", f"({one})?", f"(?:{one}){{{count}}}",
             f"({one}){{0,{count}}}",
             f"({one}){{{count},}}", f"({one})*?", f"({one}&{other})", f"(~({one}))", f"({one})&({other})",
             f"(({one})*)*{other}",
             f"({one}?){{{min(count, 300)}}}{other}", one * 50, f"({one}"]
        )  # fmt: skip

    def _integer(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "integer"}
        for keyword, chance in (
            ("minimum", 0.4), ("maximum", 0.4), ("exclusiveMinimum", 0.15), ("exclusiveMaximum", 0.15),
            ("multipleOf", 0.1),
        ):  # fmt: skip
            if rng.random() < chance:
                schema[keyword] = (
                    self.number() if keyword != "multipleOf" else rng.choice([1, 2, 3, 7, 0.5, 10, 2**40, 1.5])
                )
        return schema

    def _number(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema = self._integer(depth)
        schema["type"] = "number"
        if "multipleOf" in schema:
            schema["multipleOf"] = rng.choice([1, 0.5, 0.25, 2, 1e-3])
        return schema

    def _string(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "string"}
        if rng.random() < 0.3:
            schema["minLength"] = rng.choice([0, 1, 2, 3.0])
        if rng.random() < 0.5:
            schema["maxLength"] = rng.choice([3, 5, 8, 2**31, 2**63])
        lot = rng.random()
        if lot < 0.25:
            schema["pattern"] = rng.choice(_PATTERNS) if self._sane or rng.random() < 0.5 else self.regex()
        elif lot < 0.5:
            schema["format"] = rng.choice(_FORMATS)
        return schema

    def _choice(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        values: list[Any] = [
            None,
            True,
            False,
            "a",
            "",
            'é\n"',
            [],
            {},
            [1, "x"],
            {"a": [0]},
            self.number(),
            self.number(),
        ]
        if rng.random() < 0.4:
            return {"const": rng.choice(values)}
        schema: dict[str, Any] = {"enum": rng.sample(values, rng.randint(1, 4))}
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema: dict[str, Any] = {"type": "array", "items": self.schema(depth - 1)}
        if rng.random() < 0.3:
            schema["prefixItems"] = [self.schema(depth - 1) for _ in range(rng.randint(1, 2))]
        if rng.random() < 0.3:
            schema["minItems"] = rng.choice([0, 1, 2])
        schema["maxItems"] = rng.choice([2, 3])
        if rng.random() < 0.2:
            schema |= rng.choice(
                [
                    {"uniqueItems": False},
                    {"minContains": 0},
                    {"contains": {}, "minContains": 0},
                    {"unevaluatedItems": True},
                ]
            )
        return schema

    def _object(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        names = rng.sample(_NAMES, rng.randint(0, 3))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        if names and rng.random() < 0.7:
            schema["required"] = rng.sample(names, rng.randint(1, len(names)))
        schema["additionalProperties"] = rng.choice([False, False, False, {"type": "null"}])
        if rng.random() < 0.2:
            schema |= rng.choice(
                [{"propertyNames": {"type": "string"}}, {"propertyNames": True}, {"unevaluatedProperties": True},
                 {"dependentRequired": {}}, {"minProperties": 0}, {"maxProperties": 2**40}]
            )  # fmt: skip
        if rng.random() < 0.1:
            del schema["properties"]
            schema.pop("required", None)
            schema |= {"additionalProperties": {"type": "null"}, "maxProperties": 2}
            schema["propertyNames"] = rng.choice(
                [{"enum": ["a", "b"]}, {"pattern": "^[a-c]$"}, {"maxLength": 2}, {"const": "q"}]
            )
        return schema

    def _combined(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        parts = [self.schema(depth - 1) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.3:
            name = rng.choice(["a", "B", "c d"])
            return {"$defs": {name: parts[0]}, "anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
        return {rng.choice(["anyOf", "anyOf", "anyOf", "allOf", "oneOf"]): parts}

    def _odd(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        value: Any = rng.choice(
            [None, True, -1, self.number(), "x", [], {}, [{}], {"a": {}}, self.schema(depth - 1), 10**400, ["a", "a"]]
        )
        keyword = rng.choice(
            [
                "type",
                "enum",
                "const",
                "minimum",
                "maximum",
                "multipleOf",
                "exclusiveMinimum",
                "minLength",
                "maxLength",
                "pattern",
                "format",
                "items",
                "prefixItems",
                "minItems",
                "maxItems",
                "uniqueItems",
                "contains",
                "minContains",
                "properties",
                "patternProperties",
                "additionalProperties",
                "required",
                "minProperties",
                "propertyNames",
                "dependentRequired",
                "dependentSchemas",
                "if",
                "then",
                "else",
                "not",
                "allOf",
                "anyOf",
                "oneOf",
                "$ref",
                "$defs",
                "$id",
                "$anchor",
                "$dynamicRef",
                "unevaluatedProperties",
                "unevaluatedItems",
                "$schema",
            ]
        )
        schema = self.schema(depth - 1) if rng.random() < 0.5 else {}
        schema[keyword] = value
        return schema

    def _deep(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        schema = self.schema(0)
        keyword = rng.choice(["items", "anyOf", "properties", "additionalProperties", "not", "allOf", "enum"])
        for _ in range(rng.choice([5, 20, 60, 90, 150])):
            if keyword in ("anyOf", "allOf"):
                schema = {keyword: [schema]}
            elif keyword == "properties":
                schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
            elif keyword == "enum":
                schema = {"enum": [[schema]]} if "enum" not in schema else {"enum": [[schema["enum"]]]}
            else:
                schema = {keyword: schema}
        return schema
