"""Schemas of clients: what binds nothing is taken, what binds is kept to exactly or refused by its path."""

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import random
import re
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema
import pydantic
import pytest
from grammar_walks import EOS, random_text, words
from pydantic import networks
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.benchmarks.faults.schema_fuzzer import SchemaFuzzer
from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarError, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema

P53, P63 = 2**53, 2**63
INTEGER, NUMBER, STRING = {"type": "integer"}, {"type": "number"}, {"type": "string"}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def answers(compiler: GrammarCompiler, schema: dict[str, Any], count: int = 8, most: int = 80) -> list[Any]:
    """Random answers under ``schema``, each of which fulfils it."""
    rng = random.Random(fresh_seed())
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
    found = [text for _ in range(count) if (text := random_text(grammar, VOCABULARY, rng, most)) is not None]
    validator = jsonschema.Draft202012Validator(schema)
    for text in found:
        validator.validate(json.loads(text))
    return [json.loads(text) for text in found]


VOCABULARY = words()
# In decimals: by floats, 37.102 is no multiple of 0.001.
EXACT = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer",
        lambda _, value: (
            not isinstance(value, bool) and isinstance(value, (int, decimal.Decimal)) and value == int(value)
        ),
    ),
)


def exactly(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=decimal.Decimal)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"enum": [1234567890123456789]}, "enum"),
        ({"enum": [-9223372036854775807]}, "enum"),
        ({"const": P53 + 1}, "const"),
        ({"const": {"a": [1, {"b": -P53 - 1}]}}, "const"),
        ({"const": 10**30 + 1}, "const"),
        ({"const": float("inf")}, "const"),
        ({"properties": {"x": {"type": "integer", "minimum": 10**19, "maximum": 10**19 + 9}}}, "properties.x.minimum"),
        ({"items": {"anyOf": [{"type": "integer", "exclusiveMinimum": P63}]}}, "items.anyOf[0].exclusiveMinimum"),
        ({"type": "integer", "maximum": -(10**19)}, "maximum"),
        ({"type": "integer", "minimum": P53 + 1, "maximum": P53 + 1}, "minimum"),
        ({"$defs": {"a": {"type": "number", "minimum": 1e20}}}, "$defs.a.minimum"),
        ({"type": "number", "maximum": float("-inf")}, "maximum"),
        ({"type": "number", "multipleOf": P53 + 1}, "multipleOf"),
        ({"type": "string", "minLength": 10**30}, "minLength"),
        ({"type": "string", "maxLength": 2.5}, "maxLength"),
        ({"type": "array", "minItems": -1}, "minItems"),
        ({"type": "string", "pattern": "a\\"}, "pattern"),
    ],
)
def test_numbers_that_would_become_others_are_refused_by_their_path(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError) as refused:
        bind_schema(schema, "f")
    assert refused.value.field == f"f.{path}"


@pytest.mark.parametrize(
    "schema",
    [
        {**INTEGER, "minimum": -P63, "maximum": P63 - 1},
        {**INTEGER, "minimum": -(2**31), "maximum": 2**31 - 1},
        {**INTEGER, "exclusiveMinimum": P53},
        {**INTEGER, "exclusiveMaximum": -P53},
        {**INTEGER, "minimum": P53 - 2, "maximum": P53 + 2},
        {**INTEGER, "minimum": P53 + 1, "maximum": P53 + 5},
        {**INTEGER, "minimum": 0, "maximum": 2**64 - 1},
        {**INTEGER, "minimum": 2**62, "maximum": 2**70},
        {**INTEGER, "maximum": -(2**60)},
        {**INTEGER, "minimum": 0.5, "exclusiveMaximum": 3.0},
        {**NUMBER, "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
        {**NUMBER, "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        {**NUMBER, "exclusiveMinimum": 0, "exclusiveMaximum": 1e-7},
        {**NUMBER, "exclusiveMinimum": 0},
        {**NUMBER, "minimum": 0, "maximum": 5e-324},
        {**NUMBER, "minimum": 1e-320, "maximum": 1},
        {**NUMBER, "exclusiveMinimum": -1e-9, "maximum": 1e-9},
        {"enum": [2**60, -(2**62), P53, 0.1, 1e22, -0.0, 1e-7, True]},
        {"type": ["integer", "null"], "minimum": -P63, "maximum": P63 - 1},
        {"type": "object", "properties": {"a": {"minimum": 3, **INTEGER, "maximum": P63}}, "required": ["a"]},
        {**STRING, "maxLength": P63},
        {**STRING, "minLength": 1.0, "maxLength": 2.0},
    ],
    ids=str,
)
def test_numbers_are_kept_to_exactly(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    assert answers(compiler, schema)


def test_random_schemas_are_kept_to_by_the_judgement_of_jsonschema(compiler: GrammarCompiler) -> None:
    rng = random.Random(fresh_seed())
    fuzzer = SchemaFuzzer(rng, sane=True)
    judged = followed = 0
    for _ in range(250):
        schema = fuzzer.schema(2)
        try:
            bound = bind_schema(schema, "f")
            grammar = compiler.compile(GrammarSpec.json_schema(bound))
        except (InputError, GrammarError):
            continue
        followed += 1
        for _ in range(3):
            text = random_text(grammar, VOCABULARY, rng, 60)
            if text is not None:
                judged += 1
                # A schema that refers to itself and takes nothing in on the way is beyond the judge.
                with suppress(RecursionError):
                    EXACT(exactly(json.dumps(schema))).validate(exactly(text))
    assert judged > 150 and followed > 100


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Small(enum.IntEnum):
    ONE = 1


class Pair(NamedTuple):
    a: int
    b: str = "x"


@dataclasses.dataclass
class Data:
    a: int = 1


class Model(pydantic.BaseModel):
    x: int
    why: Annotated[str, pydantic.Field(description="why", examples=["so"], deprecated=True)] = ""


class Tree(pydantic.BaseModel):
    children: "list[Tree]" = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


PYDANTIC: list[Any] = [
    int, float, bool, str, bytes, None, complex, datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
    decimal.Decimal, uuid.UUID, pathlib.Path, re.Pattern, ipaddress.IPv4Address, ipaddress.IPv6Address,
    ipaddress.IPv4Network, ipaddress.IPv6Network, ipaddress.IPv4Interface, Color, Small, Pair, Data, Model, Tree, list,
    list[int], tuple[int, str], tuple[int, ...], dict, dict[str, int], dict[int, str], dict[Color, int],
    dict[uuid.UUID, int], dict[datetime.date, int], dict[Literal["a", "b"], int], Mapping[str, int], int | None,
    int | str, Literal["a", 1, None], Any, object, pydantic.SecretStr, pydantic.SecretBytes, pydantic.FilePath,
    pydantic.DirectoryPath, pydantic.NewPath, pydantic.UUID1, pydantic.UUID4, pydantic.Json, pydantic.Json[int],
    pydantic.Base64Str, pydantic.Base64Bytes, pydantic.Base64UrlStr, pydantic.PositiveInt, pydantic.NegativeInt,
    pydantic.NonNegativeInt, pydantic.PositiveFloat, pydantic.FiniteFloat, pydantic.StrictInt, pydantic.StrictStr,
    pydantic.StrictBytes, pydantic.conint(multiple_of=3, ge=1), pydantic.confloat(gt=0, lt=1),
    pydantic.constr(pattern="^a+$", max_length=5), pydantic.conlist(int, min_length=1, max_length=3),
    pydantic.condecimal(max_digits=5, decimal_places=2), pydantic.PastDate, pydantic.FutureDate,
    pydantic.PastDatetime, pydantic.AwareDatetime, pydantic.NaiveDatetime, pydantic.ByteSize, pydantic.ImportString,
    networks.AnyUrl, networks.HttpUrl, networks.FileUrl, networks.PostgresDsn, networks.IPvAnyAddress,
    networks.IPvAnyNetwork, networks.IPvAnyInterface, Sequence[int], deque[int], Iterable[int], type[int],
    dict[Annotated[str, pydantic.Field(pattern="^a$")], int], OrderedDict[str, int], Counter[str],
    Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], Annotated[int, pydantic.Field(ge=-(P63), le=P63 - 1)],
]  # fmt: skip


@pytest.mark.parametrize("kind", PYDANTIC, ids=str)
def test_what_pydantic_writes_is_taken(compiler: GrammarCompiler, kind: Any) -> None:
    model = pydantic.create_model("Drawn", field=(kind, ...))
    for mode in ("validation", "serialization"):
        schema = model.model_json_schema(mode=mode)  # type: ignore[arg-type]
        assert compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))


ZOD: list[dict[str, Any]] = [
    {**INTEGER, "minimum": -(P53 - 1), "maximum": P53 - 1},  # z.int()
    {**INTEGER, "exclusiveMinimum": 0, "maximum": P53 - 1},
    {**STRING, "format": "email", "pattern": r"^(?:[A-Za-z0-9])[A-Za-z0-9._]*@([A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"},
    {**STRING, "format": "base64", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*$"},
    {**STRING, "format": "cuid2"},
    {**STRING, "format": "emoji"},
    {"type": "object", "propertyNames": STRING, "additionalProperties": NUMBER},  # z.record()
    {"type": "object", "propertyNames": {**STRING, "enum": ["a", "b"]}, "additionalProperties": NUMBER},
    {"type": "array", "prefixItems": [STRING, NUMBER]},
    {"anyOf": [STRING, {"type": "null"}], "readOnly": True, "default": None},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {"a": {}}},
    {"not": False},
    {"type": "array", "items": {"not": {}}},  # z.array(z.never())
    {"type": "object", "properties": {"a": {"not": {}, "title": "A"}}, "additionalProperties": False},
]


@pytest.mark.parametrize(
    "schema",
    [
        *ZOD,
        {"type": "object", "propertyNames": {}},
        {"type": "object", "propertyNames": {"type": ["string", "null"], "minLength": 0, "title": "K"}},
        {"type": "array", "uniqueItems": False, "maxItems": 3, "items": {"enum": [1]}},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"type": "array", "contains": {"type": "integer"}, "minContains": 0, "maxItems": 2, "items": INTEGER},
        {"type": "object", "unevaluatedProperties": True, "dependentRequired": {}, "dependentSchemas": {}},
        {"type": "array", "unevaluatedItems": {}, "items": INTEGER, "maxItems": 2},
        {"type": "string", "nullable": True, "strict": True, "enumDescriptions": ["a"], "xml": {}, "maxLength": 3},
        {"type": "integer", "if": {"minimum": 3}, "maximum": 9},
        {"type": "integer", "format": "int64", "minimum": 1},
        {"enum": ["a", "b"], "enumNames": ["A", "B"], "markdownDescription": "x"},
        *(
            {**STRING, "format": name}
            for name in ("binary", "password", "path", "regex", "uri-reference", "unheard-of")
        ),
    ],
    ids=str,
)
def test_what_binds_nothing_is_taken(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    answers(compiler, schema, 3, 40)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ({"enum": ["a", "b"]}, "[ab]"),
        ({"pattern": "^[a-c]$"}, "[a-c]"),
        ({"maxLength": 1}, ".?"),
        ({"$ref": "#/$defs/k"}, "q"),
        ({"format": "date"}, r"\d{4}-\d\d-\d\d"),
    ],
)
def test_names_of_maps_follow_their_rule(compiler: GrammarCompiler, rule: dict[str, Any], names: str) -> None:
    null = {"type": "null"}
    schema = {"type": "object", "propertyNames": rule, "additionalProperties": null, "$defs": {"k": {"const": "q"}}}
    seen = {name for answer in answers(compiler, schema, 20) for name in answer}
    assert all(re.fullmatch(names, name, re.DOTALL) for name in seen), seen


@pytest.mark.parametrize("name", ["date", "date-time", "email", "ipv4", "uuid", "time"])
def test_known_formats_bind(compiler: GrammarCompiler, name: str) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for answer in answers(compiler, {**STRING, "format": name}, 4, 120):
        checker.check(answer, name)


def test_what_nothing_else_has_judged_is_additional(compiler: GrammarCompiler) -> None:
    """Where a schema brings no others together."""
    plain = {"type": "object", "properties": {"a": {"type": "null"}}}
    assert all(set(answer) <= {"a"} for answer in answers(compiler, {**plain, "unevaluatedProperties": False}, 20))
    assert bind_schema({**plain, "additionalProperties": False, "unevaluatedProperties": NUMBER}, "f") == {
        **plain, "additionalProperties": False,
    }  # fmt: skip
    for inner in answers(compiler, {**plain, "unevaluatedProperties": {"const": 7}}, 20):
        assert all(value == 7 for name, value in inner.items() if name != "a")
    pair = {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}
    assert all(len(answer) <= 2 for answer in answers(compiler, {**pair, "unevaluatedItems": False}, 20))


@pytest.mark.parametrize(
    ("items", "count"),
    [
        ({"enum": ["a", "b", "c"], "type": "string"}, 16),
        ({"$ref": "#/$defs/k", "title": "K"}, 5),
        ({"type": "boolean"}, 5),
        ({"enum": [1, 1.0, True, None]}, 16),
    ],
    ids=str,
)
def test_lists_without_repetition_of_a_few_values(compiler: GrammarCompiler, items: Any, count: int) -> None:
    unique = {"type": "array", "uniqueItems": True, "items": items}
    schema = {"type": "object", "properties": {"p": unique}, "required": ["p"], "$defs": {"k": {"enum": ["x", "y"]}}}
    bound = bind_schema(schema, "f")
    assert len(bound["properties"]["p"]["enum"]) == count
    answers(compiler, schema, 12, 40)
    least = {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2}
    assert len(bind_schema(least, "f")["enum"]) == 6


def test_what_binds_and_cannot_be_kept_stays_refused(compiler: GrammarCompiler) -> None:
    for schema in (
        {"uniqueItems": True},
        {"type": "array", "uniqueItems": True, "items": INTEGER},
        {"propertyNames": {"pattern": "^a"}, "properties": {"b": {}}},
        {"contains": {"const": 1}},
        {"not": {"const": 1}},
        {"if": {"const": 1}, "then": {"const": 1}},
        {"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"type": "array", "contains": {"const": 1}, "minContains": 0, "maxContains": 2, "unevaluatedItems": False},
        {"dependentRequired": {"a": ["b"]}},
    ):
        with pytest.raises(GrammarError):
            compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))


def test_anything_may_stand_where_a_schema_should(compiler: GrammarCompiler) -> None:
    """Malformed schemas are the library's to refuse, or ours, and nothing else comes of them."""
    rng = random.Random(fresh_seed())
    fuzzer, values = (
        SchemaFuzzer(rng),
        [None, True, 3, -1, 0.5, "x", [], {}, [3], ["a"], {"a": 3}, 10**400, [[]], 10**5000],
    )
    keywords = (
        "oneOf propertyNames properties required enum const minLength maxItems minimum multipleOf type uniqueItems"
    )
    for _ in range(3000):
        schema = fuzzer.schema(rng.randint(0, 3))
        for keyword in rng.sample(keywords.split(), rng.randint(0, 2)):
            inner = {rng.choice(keywords.split()): rng.choice(values)}
            schema[keyword] = rng.choice([*values, inner, [inner, {"type": "object"}]])
        try:
            text = json.dumps(bind_schema(schema, "f"))
        except InputError as refused:
            assert refused.field.startswith("f") and str(refused)
        except ValueError as error:  # an integer that Python does not write; no body has one
            assert "integer string conversion" in str(error)
        else:
            assert text


def test_schemas_nested_without_end_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"items": schema}
    with pytest.raises(InputError, match="nested at most"):
        bind_schema(schema, "f")
