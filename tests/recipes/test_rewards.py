import numpy as np
import pytest

from ladle.recipes.rewards import (
    Concise,
    Positive,
    Simple,
    combine,
    count_syllables,
    ends_sentence,
    make_reward,
)


def _words(text: str) -> int:
    return len(text.split())


def test_positive_recovers_the_lexicon_valences() -> None:
    # VADER's lexicon: good 1.9, terrible -2.1, table no entry. The compound is rounded to 4 decimals.
    positive = Positive()
    assert positive("", "The food was good") == pytest.approx(1.9, abs=2e-3)
    assert positive("", "The food was terrible") == pytest.approx(-2.1, abs=2e-3)
    assert positive("", "There is a table") == 0.0


def test_positive_does_not_saturate_but_is_clipped() -> None:
    positive = Positive()
    assert positive("", "good good good") == pytest.approx(5.7, abs=2e-2)
    assert positive("", " ".join(["good"] * 12)) == 12.0
    assert positive("", " ".join(["terrible"] * 12)) == -6.0


@pytest.mark.parametrize(
    ("words", "end", "expected"),
    [(18, ".", 0.0), (20, ".", -2.0), (20, "", -8.0), (10, "!", -20.0), (3, ",", -43.5), (48, "", -36.0)],
)
def test_concise_by_hand(words: int, end: str, expected: float) -> None:
    assert Concise(_words, 18)("", " ".join(["word"] * words) + end) == expected


def test_concise_ranks_three_words_below_no_end_at_all() -> None:
    concise = Concise(_words, 18)
    assert concise("", "just three words") < concise("", " ".join(["word"] * 48))


@pytest.mark.parametrize(
    ("word", "syllables"),
    [("rain", 1), ("home", 1), ("the", 1), ("table", 2), ("little", 2), ("beautiful", 3), ("asked", 1), ("wanted", 2),
     ("I", 1), ("people", 2), ("sky", 1), ("Yesterday", 3), ("hmm", 1)],
)  # fmt: skip
def test_syllables(word: str, syllables: int) -> None:
    assert count_syllables(word) == syllables


def test_simple_by_hand() -> None:
    # 6 words of one syllable in 2 sentences, and the 10 words of 14 syllables that stand beside every text.
    ease = 206.835 - 1.015 * 16 / (2 + 2 / 3) - 84.6 * 20 / 16
    assert Simple()("", "The rain is wet. It falls!") == pytest.approx(ease)
    # Lines are sentences too; digits are no words.
    assert Simple()("", "1. The rain is wet\n2. It falls") == pytest.approx(ease)


def test_simple_is_not_won_by_saying_little() -> None:
    simple = Simple()
    plain = "The rain falls on the roof all day. I like to hear it. It is soft and warm in here."
    learned = "Precipitation continuously accumulates, necessitating sophisticated infrastructural considerations."
    assert simple("", plain) > simple("", "Yes.") > simple("", learned) >= 0.0
    assert 70 < simple("", "") < 75


@pytest.mark.parametrize("text", ["Yes.", "Yes!", 'He said "yes."', "(Indeed.)", "Well…", "Yes?\n"])
def test_sentence_ends(text: str) -> None:
    assert ends_sentence(text)


@pytest.mark.parametrize("text", ["", "Yes,", "and then", "1. Start:"])
def test_no_sentence_end(text: str) -> None:
    assert not ends_sentence(text)


def test_rewards_are_deterministic() -> None:
    text = "What a lovely, terrible day; I hate and love it!"
    for name in ("positive", "concise", "simple"):
        assert make_reward(name, _words)("p", text) == make_reward(name, _words)("q", text)


def test_unknown_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="'angry' is not allowed; allowed: positive, concise, simple"):
        make_reward("angry", _words)


def test_combine_is_b_times_r(random: np.random.Generator) -> None:
    matrix, scores = random.normal(size=(3, 3)), random.normal(size=(5, 3))
    expected = [[sum(matrix[j, i] * scores[c, i] for i in range(3)) for j in range(3)] for c in range(5)]
    np.testing.assert_allclose(combine(matrix.tolist(), scores), expected, rtol=1e-12)
