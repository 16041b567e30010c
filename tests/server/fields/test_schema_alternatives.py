"""Alternatives of a ``oneOf``: taken where something tells them apart."""

import json
import random
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import pydantic
import pytest
from grammar_walks import EOS, random_text, words
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarError, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema

VOCABULARY = words()
INTEGER, STRING = {"type": "integer"}, {"type": "string"}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def answers(compiler: GrammarCompiler, schema: dict[str, Any], count: int = 8) -> list[Any]:
    """Random answers under ``schema``, each of which fulfils it."""
    rng = random.Random(fresh_seed())
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
    found = [text for _ in range(count) if (text := random_text(grammar, VOCABULARY, rng, 80)) is not None]
    for text in found:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    return [json.loads(text) for text in found]


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


def test_alternatives_that_a_tag_tells_apart_are_taken(compiler: GrammarCompiler) -> None:
    """Also where the tag has a default, so that an answer without one would fulfil both."""
    model = pydantic.create_model("Owner", pet=(Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], ...))
    schema = {**model.model_json_schema(), "additionalProperties": False}
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
    seen = {answer["pet"]["kind"] for answer in answers(compiler, schema, 20)}
    assert seen == {"cat", "dog"}
    assert answers(compiler, {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": INTEGER}})
    overlap = {"type": "object", "properties": {"kind": {"enum": ["cat", "cow"]}}}
    with pytest.raises(GrammarError, match="oneOf"):
        compiler.compile(GrammarSpec.json_schema(bind_schema({"oneOf": [overlap, Cat.model_json_schema()]}, "f")))


@pytest.mark.parametrize(
    ("schema", "seen"),
    [
        ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}, {"enum": ["c", None]}]}, ["a", "b", "c", None]),
        ({"oneOf": [{"const": 1}, {"const": True}, {"type": "null"}]}, [1, True, None]),
        ({"oneOf": [{"const": 1}, {"type": "integer", "enum": [2]}, {"type": "string", "maxLength": 0}]}, [1, 2, ""]),
        ({"oneOf": [{"type": "string", "enum": ["a", 1]}, {"const": 1}]}, ["a", 1]),
    ],
    ids=str,
)
def test_alternatives_that_are_listed_are_taken(
    compiler: GrammarCompiler, schema: dict[str, Any], seen: list[Any]
) -> None:
    drawn = answers(compiler, schema, 200)
    assert set(map(repr, drawn)) == set(map(repr, seen))


def test_alternatives_of_several_kinds_are_taken_together(compiler: GrammarCompiler) -> None:
    """Objects that a tag tells apart, whatever it is, beside what is no object."""
    tagged = [
        {"type": "object", "properties": {"v": {"const": tag}}, "additionalProperties": False} for tag in (1, True, "1")
    ]
    schema = {"oneOf": [tagged[0], {"type": "null"}, *tagged[1:], {"const": "none"}]}
    drawn = answers(compiler, schema, 300)
    assert set(map(repr, drawn)) == {"None", "'none'", "{'v': 1}", "{'v': True}", "{'v': '1'}"}


@pytest.mark.parametrize(
    "branches", [[{"const": 1}, {"enum": [2, 1.0]}], [{"const": "a"}, STRING], [{}, STRING]], ids=str
)
def test_alternatives_that_overlap_are_refused(compiler: GrammarCompiler, branches: list[Any]) -> None:
    with pytest.raises(GrammarError, match="oneOf"):
        compiler.compile(GrammarSpec.json_schema(bind_schema({"oneOf": branches}, "f")))
