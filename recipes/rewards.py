"""Rewards computed offline from the text alone: deterministic, so that a family can be made again bit for bit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

BUILT_IN = ("positive", "concise", "simple")
"""Objectives that `make_reward` has a reward for."""
_VADER_ALPHA = 15.0
_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_BREAK = re.compile(r"[.!?…]+(?=\s|$)|\n+")
_VOWELS = re.compile(r"[aeiouy]+")
_SENTENCE_END = (".", "!", "?", '."', '!"', '?"', ".)", "…")


class Reward(Protocol):
    """Scores a response; higher is better. `name` is the objective it stands for."""

    name: str

    def __call__(self, prompt: str, response: str) -> float: ...


class Positive:
    """Sum of the valences VADER finds in the response, clipped to [-6, 12].

    VADER reports s / sqrt(s^2 + 15) for a summed valence s, which saturates after a few words; this inverts that
    squashing,
    so that a text full of praise still beats one with a single kind word. Lexicon: Hutto and Gilbert, ICWSM 2014.
    """

    name = "positive"
    low, high = -6.0, 12.0

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, prompt: str, response: str) -> float:
        compound = float(self._analyzer.polarity_scores(response)["compound"])
        # compound is rounded to four decimals, so +-1 does occur; the clip below makes the exact value there
        # irrelevant.
        compound = min(max(compound, -0.9999), 0.9999)
        return float(np.clip(compound * math.sqrt(_VADER_ALPHA / (1.0 - compound * compound)), self.low, self.high))


class Concise:
    """Distance to a target length in tokens: -(n - target) above it, -2.5 (target - n) below it, -6 if it ends
    mid-sentence.

    Length alone is hacked at once (three-token answers), hence two sides and the steeper slope below the target: the
    shortest answers rank under the longest ones. Ours.
    """

    name = "concise"
    shortfall, unfinished = 2.5, 6.0

    def __init__(self, count_tokens: Callable[[str], int], target: int = 18) -> None:
        self._count_tokens = count_tokens
        self.target = target

    def __call__(self, prompt: str, response: str) -> float:
        excess = self._count_tokens(response) - self.target
        score = -float(excess) if excess >= 0 else self.shortfall * excess
        return score if ends_sentence(response) else score - self.unfinished


class Simple:
    """Flesch reading ease of the response, clipped to [0, 120]: 206.835 - 1.015 words/sentences - 84.6
    syllables/words (R. Flesch, A new readability yardstick, 1948).

    Three words of one syllable would get the best score there is, so every text is read as if ten words of plain prose
    (14 syllables, two thirds of a sentence) stood beside it: short texts are drawn towards 74. The syllables of a word
    are its groups of vowels, a silent final e not counted; dictionaries of pronunciation would be more exact, and this
    one needs none. Both ours.
    """

    name = "simple"
    low, high = 0.0, 120.0
    words, syllables, sentences = 10.0, 14.0, 2.0 / 3.0

    def __call__(self, prompt: str, response: str) -> float:
        matches = _WORD.findall(response)
        sentences = sum(1 for part in _BREAK.split(response) if _WORD.search(part))
        words = len(matches) + self.words
        syllables = sum(count_syllables(word) for word in matches) + self.syllables
        ease = 206.835 - 1.015 * words / (sentences + self.sentences) - 84.6 * syllables / words
        return float(np.clip(ease, self.low, self.high))


def count_syllables(word: str) -> int:
    """Syllables of an English word, by its groups of vowels; at least one."""
    letters = word.lower()
    groups = len(_VOWELS.findall(letters))
    consonant = letters[-2:-1] not in "aeiouy"
    table = letters.endswith("le") and letters[-3:-2] not in "aeiouy"
    if letters.endswith("e") and consonant and not table and groups > 1:
        groups -= 1  # the e of "home"; that of "table" is heard
    if letters.endswith("ed") and letters[-3:-2] not in "aeiouytd" and groups > 1:
        groups -= 1  # "asked"; the e of "wanted" is heard
    return max(groups, 1)


def ends_sentence(text: str) -> bool:
    """Whether the text stops where a sentence does."""
    return text.rstrip().endswith(_SENTENCE_END)


def make_reward(name: str, count_tokens: Callable[[str], int], concise_target: int = 18) -> Reward:
    """The reward of an objective.

    Raises:
        ValueError: no reward has this name.
    """
    if name == "positive":
        return Positive()
    if name == "concise":
        return Concise(count_tokens, concise_target)
    if name == "simple":
        return Simple()
    raise ValueError(
        f"objectives: {name!r} is not allowed; allowed: {', '.join(BUILT_IN)}, or one that [rewards] names a reward for"
    )


def scores(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The reward of each response, at once where the reward takes several.

    Args:
        reward: may have a method ``many`` with these two arguments.
        prompts: one for each response.
        responses: as a reader sees them.
    """
    many: Callable[[Sequence[str], Sequence[str]], list[float]] | None = getattr(reward, "many", None)
    if many is not None:
        return many(prompts, responses)
    return [reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def combine(rows: Sequence[Sequence[float]], scores: np.ndarray) -> np.ndarray:
    """Backbone rewards h = B r (Bone Soup, arXiv 2502.10762): float64 [candidates, backbones] from B and scores
    [candidates, objectives]."""
    return np.asarray(scores, dtype=np.float64) @ np.asarray(rows, dtype=np.float64).T
