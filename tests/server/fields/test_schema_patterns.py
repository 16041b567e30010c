"""Patterns that look ahead, kept to by the judgement of jsonschema, whose regular expressions know how."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from grammar_walks import EOS, random_text, words
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarError, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema

STRING, VOCABULARY = {"type": "string"}, words()


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


# What zod writes for durations, for mails before its version 4.6, for hosts, and others that look ahead.
DURATION = r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
MAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
HOST = rf"^(?=.{{1,253}}\.?$){LABEL}(?:\.{LABEL})*\.?$"


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": DURATION},
        {"pattern": DURATION, "format": "duration"},
        {"pattern": MAIL, "maxLength": 16},
        {"pattern": MAIL, "format": "email", "maxLength": 24},
        {"pattern": HOST, "format": "hostname"},
        {"pattern": r"^(?=.*[0-9])(?=.*[a-z)])[a-z0-9()]{3,8}$"},
        {"pattern": r"^(?=[\s\S]*b)[ab]+$", "allOf": [{"maxLength": 6}]},
        {"pattern": r"^(?=a|[|)]b)(?:a|\)b)c?$"},
    ],
)
def test_patterns_that_look_ahead(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    rng, whole = random.Random(fresh_seed()), {**STRING, **schema}
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(whole, "f")))
    found = [text for _ in range(12) if (text := random_text(grammar, VOCABULARY, rng, 80)) is not None]
    for text in found:
        jsonschema.Draft202012Validator(whole).validate(json.loads(text))
    assert found


@pytest.mark.parametrize("pattern", [DURATION, MAIL, HOST])
def test_patterns_without_looking_ahead_take_the_same_texts(pattern: str) -> None:
    """Every short text over the characters that matter."""
    bound = bind_schema({**STRING, "pattern": pattern}, "f")
    others = [bound["pattern"], *(part["pattern"] for part in bound.get("allOf", ()))]
    letters = {DURATION: "PT1YMDHSW.", MAIL: "a.@-'", HOST: "a.-"}[pattern]
    rng, kinds = random.Random(fresh_seed()), Counter[bool]()
    for _ in range(40_000):
        text = "".join(rng.choices(letters, k=rng.randint(1, 9)))
        text = f"P{text}" if pattern == DURATION else f"{text}@a.ab" if pattern == MAIL and rng.random() < 0.5 else text
        fits = re.search(pattern, text) is not None
        kinds[fits] += 1
        assert fits == all(re.search(other, text) for other in others), text
    assert min(kinds.values()) > 50


@pytest.mark.parametrize(
    "pattern", ["^(?=a)b|c", "^(?!a)b", "a(?=b)b", "^(?=a)*b", "^(?=a", "^(?<=a)b", "^(?=(?!a)b)b", "(?=a)b"]
)
def test_other_patterns_that_look_around_stay_refused(compiler: GrammarCompiler, pattern: str) -> None:
    with pytest.raises((GrammarError, InputError)):
        compiler.compile(GrammarSpec.json_schema(bind_schema({**STRING, "pattern": pattern}, "f")))
