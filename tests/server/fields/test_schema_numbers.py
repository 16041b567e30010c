"""Numbers, dates and counts in schemas: what the grammar library lets pass, or writes as something else."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from grammar_walks import EOS, Walk, random_text, words
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema

NUMBER, STRING = {"type": "number"}, {"type": "string"}
VOCABULARY = words()


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def answers(compiler: GrammarCompiler, schema: dict[str, Any], count: int = 8) -> list[Any]:
    """Random answers under ``schema``, each of which fulfils it."""
    rng = random.Random(fresh_seed())
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
    texts = [random_text(grammar, VOCABULARY, rng, 80) for _ in range(count)]
    found = [json.loads(text) for text in texts if text is not None]
    for value in found:
        jsonschema.Draft202012Validator(schema).validate(value)
    return found


# Random schemas, judged with exact numbers, found these: the library let pass what they forbid.
LET_PASS: list[tuple[dict[str, Any], list[str]]] = [
    ({**NUMBER, "exclusiveMinimum": 3, "maximum": 3.1}, ["3", "3.0"]),
    ({**NUMBER, "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0", "0.0", "0.50"]),
    ({**NUMBER, "minimum": -10.5, "exclusiveMaximum": -10}, ["-10", "-10.00"]),
    ({**NUMBER, "exclusiveMaximum": 9.850327641358031e-05, "exclusiveMinimum": 9.85e-05}, ["0.00009850327641358031"]),
    ({**STRING, "format": "date"}, ['"2021-02-29"', '"1900-02-29"', '"0000-01-01"']),
    ({**STRING, "format": "date", "pattern": "9"}, ['"1999-02-29"', '"2020-01-01"']),
    ({**STRING, "format": "date-time"}, ['"2021-02-29T12:00:00Z"', '"2020-02-28T12:00:60Z"']),
    ({**STRING, "format": "duration"}, ['"PT7891229417M"', '"P1234567Y"']),
    ({**STRING, "format": "time"}, ['"12:00:60Z"', '"23:59:60-01:00"']),
]


@pytest.mark.parametrize(("schema", "texts"), LET_PASS, ids=str)
def test_what_the_library_let_pass(compiler: GrammarCompiler, schema: dict[str, Any], texts: list[str]) -> None:
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
    for text in texts:
        with Walk(grammar) as walk:
            taken = all(token in walk.allowed() and walk.take(token) for token in _tokens(text))
            assert not (taken and (walk.stopped or set(walk.allowed()) & set(EOS))), text
    answers(compiler, schema)


def _tokens(text: str) -> list[int]:
    tokens: list[int] = tiny_tokenizer().encode(text, add_special_tokens=False)
    return tokens


def test_dates_in_leap_years(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema({**STRING, "format": "date"}, "f")))
    for day in ("2020-02-29", "2000-02-29", "2021-02-28", "0001-12-31", "2023-03-31", "0004-02-29"):
        with Walk(grammar) as walk:
            assert all(token in walk.allowed() and walk.take(token) for token in _tokens(f'"{day}"')), day


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"enum": [9.775901798702055e-08]}, "enum"),
        ({**NUMBER, "multipleOf": 9.775901798702055e-08}, "multipleOf"),
        ({"allOf": [{**NUMBER, "multipleOf": 1e-10}, {**NUMBER, "multipleOf": 1.5}]}, "allOf[1].multipleOf"),
        ({**NUMBER, "exclusiveMinimum": 3, "maximum": 4, "multipleOf": 1.5}, "multipleOf"),
        ({"type": "integer", "minimum": 10**16, "maximum": 10**16, "multipleOf": 0.7}, "multipleOf"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"minProperties": 3, "properties": {"a": {}}, "required": ["a", "b"]}, "minProperties"),
        ({**NUMBER, "exclusiveMinimum": 2**51, "exclusiveMaximum": 2**51 + 0.5}, "exclusiveMinimum"),
    ],
    ids=str,
)
def test_what_would_be_another_answer_is_refused(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError) as refused:
        bind_schema(schema, "f")
    assert refused.value.field == f"f.{path}"


def test_numbers_of_many_digits(compiler: GrammarCompiler) -> None:
    """The library's reader rounds some of them to a neighbour."""
    rng = random.Random(fresh_seed())
    for _ in range(60):
        value = rng.uniform(-10, 10) * 10.0 ** rng.randint(-20, 12)
        with suppress(InputError):
            assert answers(compiler, {"const": value}, 1) == [value]


@pytest.mark.parametrize("keyword", ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"])
@pytest.mark.parametrize("value", [{"a": {}}, "3", [1], None])
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_a_bound_is_a_number(keyword: str, value: object, kind: str) -> None:
    other = "minimum" if "Max" in keyword else "maximum"
    with pytest.raises(InputError, match=rf"f\.{keyword}: .*a number"):
        bind_schema({"type": kind, other: 8.3e34 if other == "maximum" else -8.3e34, keyword: value}, "f")


def test_an_exclusive_bound_may_be_said_of_the_other_keyword() -> None:
    """Before draft 6, and in OpenAPI 3.0."""
    for said, meant in (
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"minimum": 1, "exclusiveMinimum": False}, {"minimum": 1}),
        ({"maximum": 9, "exclusiveMaximum": True, "minimum": 1}, {"exclusiveMaximum": 9, "minimum": 1}),
        ({"exclusiveMaximum": True}, {}),
    ):
        for kind in ("number", "integer"):
            assert bind_schema({"type": kind, **said}, "f") == bind_schema({"type": kind, **meant}, "f")
