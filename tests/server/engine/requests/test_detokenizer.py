"""Streamed text against the text of all tokens at once."""

import random

import pytest
from seeds import fresh_seed
from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from ladle.server.engine.requests.detokenizer import Detokenizer, StopStrings

SCRAPS = ["é", "漢字", "🙂", "👨‍👩‍👧", " a", "the rain", "b\n", "\ufffd", "ß ", "\t", "<|im_end|>", "Ω≈", "  "]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def _stream(detokenizer: Detokenizer, tokens: list[int]) -> list[str]:
    return [detokenizer.push(token)[1] for token in tokens] + [detokenizer.finish()]


def _random_prompt(rng: random.Random, size: int) -> list[int]:
    return [rng.randrange(size) for _ in range(rng.randint(1, 14))]


def test_stream_equals_decode_for_random_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Random bytes: half characters, invalid sequences, special tokens; prompts that end anywhere."""
    rng = random.Random(fresh_seed())
    for _ in range(1500):
        tokens = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))]
        pieces = _stream(Detokenizer(tokenizer, _random_prompt(rng, len(tokenizer))), tokens)
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True), tokens


def test_half_a_character_is_never_shown(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(fresh_seed())
    for _ in range(300):
        text = "".join(rng.choice(SCRAPS) for _ in range(rng.randint(1, 8))).replace("\ufffd", "")
        tokens = tokenizer.encode(text, add_special_tokens=False)
        pieces = _stream(Detokenizer(tokenizer, _random_prompt(rng, len(tokenizer))), tokens)
        assert all("\ufffd" not in piece for piece in pieces), pieces
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_emoji_comes_whole_with_its_last_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(tokens) > 1, "the tokenizer must split it, or this tests nothing"
    assert _stream(Detokenizer(tokenizer, [5, 6]), tokens) == [""] * (len(tokens) - 1) + ["🙂", ""]
    broken = _stream(Detokenizer(tokenizer, [5, 6]), tokens[:-1])
    assert broken[:-1] == [""] * (len(tokens) - 1) and broken[-1] == tokenizer.decode(tokens[:-1])


def test_prompt_text_never_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    """A prompt that ends within a character must not be given away with the first piece."""
    half = tokenizer.encode("漢", add_special_tokens=False)[:-1]
    for ending in (half, tokenizer.encode("\ufffd", add_special_tokens=False), [1, *half]):
        prompt = tokenizer.encode("the secret", add_special_tokens=False) + ending
        tokens = tokenizer.encode(" rain", add_special_tokens=False)
        assert "".join(_stream(Detokenizer(tokenizer, prompt), tokens)) == " rain"


def test_token_text_joins_to_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(fresh_seed())
    tokens = tokenizer.encode("tell me 🙂 a story", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, _random_prompt(rng, 300), ["never"])
    assert "".join(detokenizer.push(token)[0] for token in tokens) == "tell me 🙂 a story"


# -- stop strings -----------------------------------------------------------------------------------------------------


def _reference(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """Text up to the stop that is complete first; of those complete in the same piece, the one that begins first."""
    text = ""
    for piece in pieces:
        text += piece
        found = [position for stop in stops if (position := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
    return text, False


def _longest_open_stop(text: str, stops: list[str]) -> int:
    return max((length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0)


def test_stop_strings_against_the_whole_text() -> None:
    """A small alphabet, so that stops overlap themselves and each other all the time."""
    rng = random.Random(fresh_seed())
    met_any = 0
    for _ in range(4000):
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
        pieces = ["".join(rng.choice("abc") for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 12))]
        finder = StopStrings(stops)
        shown, met = "", False
        so_far = ""
        for piece in pieces:
            so_far += piece
            text, met = finder.push(piece)
            shown += text
            if met:
                break
            # What is held back is exactly the longest tail that begins a stop: no leak, no needless delay.
            assert shown == so_far[: len(so_far) - _longest_open_stop(so_far, stops)], (stops, pieces)
        expected, expected_met = _reference(pieces, stops)
        assert met == expected_met
        assert shown + ("" if met else finder.flush()) == expected, (stops, pieces)
        met_any += met
    assert 400 < met_any < 3900


def test_stop_across_tokens_of_a_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(fresh_seed())
    for _ in range(400):
        text = "".join(rng.choice(SCRAPS[:7]) for _ in range(rng.randint(1, 8)))
        start = rng.randrange(len(text))
        stop = text[start : start + rng.randint(1, 6)]
        tokens = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = Detokenizer(tokenizer, [4], [stop])
        shown, met = "", False
        for token in tokens:
            _, piece, met = detokenizer.push(token)
            shown += piece
            if met:
                break
        assert met and shown == text[: text.find(stop)], (text, stop)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["abc"], ["abc"], ""),  # the whole text
        (["a", "b", "c", "d"], ["abcd"], ""),
        (["x"], ["x"], ""),  # at the first token
        (["ab", "ab", "abc"], ["ababc"], "ab"),  # the first try fails half-way
        (["one\n", "\ntwo"], ["\n\n"], "one"),
        (["aXYZ"], ["YZ", "XYZ"], "a"),  # overlapping: the one that begins first
        (["ab", "c"], ["abd", "bc"], "a"),
    ],
)
def test_stop_by_example(pieces: list[str], stops: list[str], shown: str) -> None:
    finder = StopStrings(stops)
    results = [finder.push(piece) for piece in pieces]
    assert "".join(text for text, _ in results) == shown and results[-1][1]


def test_held_text_comes_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.encode("the sea", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [4], ["the sea and"])
    pieces = _stream(detokenizer, tokens)
    assert "".join(pieces[:-1]) == "" and pieces[-1] == "the sea"
    assert detokenizer.finish() == ""
