"""Names that a schema does not list: none of them is a listed one that is written with an escape."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from grammar_walks import EOS, Walk, random_text, words
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.server.engine.grammars.grammar import Grammar, GrammarCompiler, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema

INTEGER, TEXT = {"type": "integer"}, {"type": "string", "maxLength": 4}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def grammar(compiler: GrammarCompiler, schema: dict[str, Any]) -> Grammar:
    return compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))


def takes(found: Grammar, text: str) -> bool:
    with Walk(found) as walk:
        tokens = tiny_tokenizer().encode(text, add_special_tokens=False)
        taken = all(token in walk.allowed() and walk.take(token) for token in tokens)
        return taken and (walk.stopped or bool(set(walk.allowed()) & set(EOS)))


@pytest.mark.parametrize("others", [{}, {"additionalProperties": True}, {"additionalProperties": TEXT}], ids=str)
def test_an_escape_makes_no_other_name(compiler: GrammarCompiler, others: dict[str, Any]) -> None:
    found = grammar(compiler, {"type": "object", "properties": {"a": INTEGER, "b/c": INTEGER}, **others})
    for text in (
        '{"a":1}',
        '{"a":1,"b/c":2}',
        '{"ab":"x"}',
        '{"":"x"}',
        '{"b":"x"}',
        '{"a":1,"é":"x"}',
        '{"b/cd":"x"}',
    ):
        assert takes(found, text), text
    for text in ('{"\\u0061":"x"}', '{"a":"x"}', '{"b\\u002fc":"x"}', '{"a":1,"\\u0061":"x"}', '{"\\ud83d":"x"}'):
        assert not takes(found, text), text


def test_parts_that_are_brought_together_stay_open(compiler: GrammarCompiler) -> None:
    """Patterns of two of them would meet, which the library refuses."""
    one, two = ({"type": "object", "properties": {name: INTEGER}} for name in "ab")
    assert takes(grammar(compiler, {"allOf": [one, two]}), '{"a":1,"b":2}')
    assert takes(grammar(compiler, {"$defs": {"x": one}, "$ref": "#/$defs/x", **two}), '{"a":1,"b":2}')
    alone = grammar(compiler, {"allOf": [one]})
    assert takes(alone, '{"a":1,"b":2}') and not takes(alone, '{"\\u0061":"x"}')


def test_names_that_follow_no_pattern(compiler: GrammarCompiler) -> None:
    found = grammar(compiler, {"patternProperties": {"^a": INTEGER}, "additionalProperties": TEXT, "type": "object"})
    assert takes(found, '{"ab":1}') and not takes(found, '{"\\u0061b":"x"}')


def test_random_names(compiler: GrammarCompiler) -> None:
    rng = random.Random(fresh_seed())
    vocabulary = words()
    for _ in range(12):
        names = {"".join(rng.choices('ab/é"\\]^- \n{🌧', k=rng.randint(0, 4))) for _ in range(rng.randint(1, 5))}
        schema = {"type": "object", "properties": dict.fromkeys(sorted(names), INTEGER), "additionalProperties": TEXT}
        (pattern,) = bind_schema(schema, "f")["patternProperties"]
        own = re.sub(r"\\x\{([0-9a-f]+)\}", lambda match: f"\\U{int(match[1], 16):08x}", pattern)
        for name in (*names, *("".join(rng.choices('ab/é"\\]^- \n{🌧', k=rng.randint(0, 4))) for _ in range(30))):
            assert (re.fullmatch(own, name) is None) == (name in names), (name, pattern)
        text = random_text(grammar(compiler, schema), vocabulary, rng, 60)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)


def test_constants_beyond_64_bits_where_integers_are_asked_for() -> None:
    for schema in (
        {"type": "integer", "enum": [1e22, 5]},
        {"allOf": [{"const": 2**64}, {"type": ["integer", "null"]}]},
    ):
        with pytest.raises(ValueError, match="64 bits"):
            bind_schema(schema, "f")
