"""Guesses at what comes next, against a plain search through the text."""

import random

from seeds import fresh_seed

from ladle.server.engine.schedule.ngram_index import NgramIndex


def _searched(text: list[int], most: int) -> tuple[int, ...]:
    for length in (3, 2):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                follows = text[end:]
                return tuple(follows[index % len(follows)] for index in range(most))
    return ()


def test_a_guess_follows_the_last_place_of_the_longest_repetition() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(60):
        text = [rng.randrange(4) for _ in range(rng.randint(0, 40))]
        cut, most = rng.randint(0, len(text)), rng.randint(0, 9)
        index = NgramIndex(text[:cut])
        for token in text[cut:]:
            index.extend([token])
        assert index.guess(most) == _searched(text, most), text


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert NgramIndex(range(100)).guess(4) == ()
    assert NgramIndex([]).guess(4) == ()
    assert NgramIndex([7]).guess(4) == ()


def test_a_loop_goes_on() -> None:
    assert NgramIndex([5, 6, 5, 6, 5, 6]).guess(5) == (5, 6, 5, 6, 5)


def test_of_a_long_prompt_the_end_counts() -> None:
    index = NgramIndex([1, 2, 3, *range(10, 10 + (1 << 14)), 1, 2])
    assert index.guess(2) == ()
