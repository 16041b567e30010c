"""Patterns of schemas: whatever the grammar lets through fits, by the judgement of Python's regular expressions."""

import json
import random
import re
from collections.abc import Iterator

import jsonschema
import pytest
from grammar_walks import EOS, Walk, random_text, words
from seeds import fresh_seed
from tiny_models import tiny_tokenizer

from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import Grammar, GrammarCompiler, GrammarSpec
from ladle.server.fields.schema_binding import bind_schema
from ladle.server.text.pattern_classes import rust_pattern

# Python warns of what it may read as Rust does one day.
pytestmark = pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
VOCABULARY = words()
BYTES = {VOCABULARY.decode_bytes([token]): token for token in reversed(range(VOCABULARY.vocab_size))}
CHARACTERS = [*map(chr, range(0x00, 0x24)), *'+,-./0Aa[\\]^_`{|}~\x7f\x85\xa0µéß٠²\u200b\u2028\ufeff']  # fmt: skip


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def fits(grammar: Grammar, text: str) -> bool:
    with Walk(grammar) as walk:
        for byte in text.encode():
            token = BYTES[bytes([byte])]
            if walk.stopped or token not in walk.allowed() or not walk.take(token):
                return False
        return walk.stopped or any(token in EOS for token in walk.allowed())


# What passes for other characters in the library's own reading of them, which Rust's is.
CLASSES = [
    '[^"]', r"[^\\]", r"[\x00-\x1f]", r"[^ -~]", r"(?:[\x00-\x0f]|[\x10-\x1f])", r"[^\w\s]", r"[^\s\"]", r"\S", r"\W",
    r"\D", "[[:alpha:]]", "[a-z&&[^b]]", "[+--]", r"[\[\]\\]", r"[\b]", r"[\0-\x1f]", r"\x1f", ".", r"[\s\S]", r"\/",
]  # fmt: skip


@pytest.mark.parametrize("pattern", CLASSES)
def test_no_other_character_fits(compiler: GrammarCompiler, pattern: str) -> None:
    whole = f"^{pattern}$"
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema({"type": "string", "pattern": whole}, "f")))
    taken = 0
    for character in CHARACTERS:
        # In two of them the class ends before the last bracket.
        text = character + "]" * pattern.endswith("]]")
        if fits(grammar, json.dumps(text)) or fits(grammar, json.dumps(text, ensure_ascii=False)):
            taken += 1
            assert re.search(whole, text), repr(text)
    assert taken


def test_random_classes_are_kept(compiler: GrammarCompiler) -> None:
    rng = random.Random(fresh_seed())
    items = [r"\s", r"\w", r"\d", r"\n", r"\x00-\x1f", "a-f", '"', r"\\", "[", "&&", r"\-", "~", "^", r"\]", "é"]
    for _ in range(12):
        chosen = "".join(rng.sample(items, rng.randint(1, 4)))
        schema = {"type": "string", "pattern": rf"^[a{rng.choice(['', '^'])}{chosen}]{{1,3}}$"}
        if rng.random() < 0.5:
            schema["pattern"] = rf"^[^{chosen}]+$"
        grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
        for _ in range(6):
            text = random_text(grammar, VOCABULARY, rng, 40)
            if text is not None:
                jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_names_that_follow_a_pattern_are_kept(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "patternProperties": {'^[^"]$': {"const": 1}}, "additionalProperties": False}
    grammar = compiler.compile(GrammarSpec.json_schema(bind_schema(schema, "f")))
    assert fits(grammar, '{"a":1}') and fits(grammar, r'{"\\":1}') and not fits(grammar, r'{"\"":1}')
    both = {"^[a]$": {"const": 1}, r"^[\x61]$": {"const": 2}}
    assert bind_schema({"patternProperties": both}, "f")["patternProperties"] == both
    with pytest.raises(InputError, match=r"f\.patternProperties"):
        bind_schema({"patternProperties": {"a\\": {}}}, "f")


SAME = [
    "^[a-z]+$", "^(?:a|b){2,3}?$", "^ab*$", "(?i:a)", r"^\p", "[]a]", "[^]", "[a", "[z-a]", r"[\d-x]", r"\01",
    r"\ud83d", "[a\\", "\\",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SAME)
def test_what_means_the_same_or_nothing_stays(pattern: str) -> None:
    assert rust_pattern(pattern) == pattern
