"""Tokens as strings and bytes, for every kind of tokenizer that matters."""

import random

import pytest
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ladle.server.text.token_text import TokenText, byte_level_alphabet, finite


def test_the_bytes_of_byte_level_tokens_are_the_text() -> None:
    tokenizer = tiny_tokenizer()
    tokens = TokenText(tokenizer)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    ranges = (range(32, 127), range(160, 0xD7FF), range(0x10000, 0x10FFFF))
    text = "".join(chr(rng.choice(rng.choice(ranges))) for _ in range(200)) + " naïve 😀 rain"
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert bytes(byte for token in ids for byte in tokens.utf8(token)).decode() == text
    for token in ids:
        assert tokens.text(token) == bytes(tokens.utf8(token)).decode("utf-8", "replace")


def test_the_alphabet_is_that_of_the_tokenizers_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_level_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_level_alphabet().values()) == list(range(256))


def test_special_tokens_have_names() -> None:
    tokenizer = tiny_tokenizer()
    tokens = TokenText(tokenizer)
    assert tokens.text(tokenizer.eos_token_id) == "<|im_end|>" and tokens.is_special(tokenizer.eos_token_id)
    assert not tokens.is_special(50)


def test_sentencepiece_tokens_keep_their_space_and_bytes() -> None:
    vocabulary = [("<unk>", 0.0), ("<0xE2>", -1.0), ("\u2581rain", -2.0), ("s", -3.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = TokenText(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokens.utf8(1) == [0xE2] and tokens.text(1) == "\ufffd"
    assert tokens.text(2) == " rain" and tokens.text(3) == "s"


def test_a_row_without_a_token_is_empty() -> None:
    assert TokenText(tiny_tokenizer()).text(319) == ""


@pytest.mark.parametrize(("value", "expected"), [(-1.5, -1.5), (float("-inf"), -9999.0), (0.0, 0.0)])
def test_logprobs_that_json_can_carry(value: float, expected: float) -> None:
    assert finite(value) == expected
