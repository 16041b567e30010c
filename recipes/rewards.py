"""Rewards computed offline from the text alone: deterministic, so that a family can be made again bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

_VADER_ALPHA = 15.0
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
    raise ValueError(f"objectives: {name!r} is not allowed; allowed: positive, concise")


def combine(rows: Sequence[Sequence[float]], scores: np.ndarray) -> np.ndarray:
    """Backbone rewards h = B r (Bone Soup, arXiv 2502.10762): float64 [candidates, backbones] from B and scores
    [candidates, objectives]."""
    return np.asarray(scores, dtype=np.float64) @ np.asarray(rows, dtype=np.float64).T
