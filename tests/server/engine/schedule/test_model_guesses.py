"""Guessing goes on as long as it pays, and is tried again now and then."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from seeds import fresh_seed

from ladle.server.engine.schedule import model_guesses
from ladle.server.engine.schedule.draft_pace import GuessPace
from ladle.server.engine.schedule.model_guesses import ModelGuesses, Wanted


class Clock:
    """A clock that the guesser moves."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Known:
    """A draft model that is right as often as ``right`` says, and as slow as ``seconds``."""

    held = 0

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.right, self.likely, self.seconds, self.behind = 1.0, 0.9, 0.01, 1
        self.calls = self.reads = 0
        self._clock, self._rng = clock, rng

    def lacks(self, sequence: Any) -> int:
        return self.behind

    def read(self, sequences: Sequence[Any]) -> None:
        self.reads += 1
        self._clock.now += 0.001 * self.behind * len(sequences)
        self.behind = 1

    def guess(self, sequences: Sequence[Any], guessed: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
        self.calls += 1
        self._clock.now += self.seconds
        return [
            (len(s.output) + len(g) if self._rng.random() < self.right else -1, self.likely)
            for s, g in zip(sequences, guessed, strict=True)
        ]


class Text(SimpleNamespace):
    """A sequence whose token at place i is i."""

    __hash__ = object.__hash__


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    clock = Clock()
    monkeypatch.setattr(model_guesses, "time", clock)
    return Known(clock, random.Random(fresh_seed()))


def _text(most: int = 5000) -> Any:
    return Text(output=[0], request=SimpleNamespace(sampling=SimpleNamespace(max_tokens=most)))


def _write(guesses: ModelGuesses, text: Any, tokens: int, row_cost: float = 0.05) -> tuple[int, int]:
    """Let so many tokens come, a step taking a second; returns the steps, and the tokens that were checked."""
    steps = drafted = 0
    until = len(text.output) + tokens
    while len(text.output) < until:
        guesses.follow(text)
        guess = guesses.guess({text: Wanted(guesses.most, row_cost)}, 1.0).get(text, ())
        right = next((i for i, token in enumerate(guess) if token < 0), len(guess))
        text.output.extend(range(len(text.output), len(text.output) + right + 1))
        steps, drafted = steps + 1, drafted + len(guess)
    return steps, drafted


def test_who_is_right_goes_on(known: Known) -> None:
    guesses = ModelGuesses(known, 4)
    steps, _ = _write(guesses, _text(), 500)
    assert steps < 110  # five tokens a step
    assert guesses.pace.seconds == pytest.approx(0.01 * known.calls)


def test_who_is_wrong_is_left_alone_and_tried_again(known: Known) -> None:
    guesses, text = ModelGuesses(known, 4), _text()
    known.right = 0.0
    _, drafted = _write(guesses, text, 300)
    assert 0 < drafted < 80
    calls = known.calls
    _, drafted = _write(guesses, text, 1000)
    assert 3 <= known.calls - calls <= 12 and drafted <= 12
    known.right = 1.0
    _write(guesses, text, 3000)
    steps, _ = _write(guesses, text, 500)
    assert steps < 110


def test_what_others_taught_is_where_a_text_begins(known: Known) -> None:
    guesses = ModelGuesses(known, 4)
    known.right = 0.0
    for _ in range(12):
        _write(guesses, _text(), 50)
    calls = known.calls
    _, drafted = _write(guesses, _text(), 50)
    assert known.calls - calls <= 4 and drafted <= 4


def test_a_model_as_slow_as_a_step_is_left_alone(known: Known) -> None:
    """However right it is: each token that it saves costs as much as one."""
    known.seconds = 1.5
    guesses, text = ModelGuesses(known, 4), _text()
    _write(guesses, text, 50)
    calls = known.calls
    _write(guesses, text, 400)
    assert known.calls - calls <= 6


def test_rows_that_cost_too_much_are_not_checked(known: Known) -> None:
    _, drafted = _write(ModelGuesses(known, 4), _text(), 200, row_cost=1.1)
    assert drafted == 0


def test_unlikely_guesses_are_not_checked(known: Known) -> None:
    """What the model holds unlikely is seldom right, at first by assumption and then by experience."""
    guesses, text = ModelGuesses(known, 4), _text()
    known.likely, known.right = 0.05, 0.5
    _, drafted = _write(guesses, text, 1, row_cost=0.2)
    assert drafted == 0 and known.calls
    _write(guesses, text, 2000, row_cost=0.2)
    _, drafted = _write(guesses, text, 200, row_cost=0.2)
    assert drafted > 20


def test_a_text_is_read_where_an_answer_is_long_enough(known: Known) -> None:
    guesses = ModelGuesses(known, 4)
    _write(guesses, _text(), 20)
    known.behind = 2000  # two seconds
    assert guesses.pace.reading(1) == 0.0
    _write(guesses, _text(), 1)
    assert known.reads == 1 and guesses.pace.reading(1000) == pytest.approx(1.0)
    known.behind = 2000
    _write(guesses, _text(3), 1)  # nothing that two more tokens could save
    assert known.reads == 1
    _write(guesses, _text(5000), 1)
    assert known.reads == 2


def test_the_time_of_a_forward() -> None:
    pace = GuessPace()
    assert pace.forward(3) == 0.0
    pace.note_forward(1, 5.0)  # what is compiled at its first use
    for _ in range(20):
        pace.note_forward(1, 0.01)
    assert pace.forward(1) == pytest.approx(0.01, rel=0.01) == pace.forward(2)
    pace.note_forward(16, 0.04)
    assert pace.forward(9) == 0.04 and pace.forward(8) == pytest.approx(0.01, rel=0.01)
    assert pace.seconds == pytest.approx(5.24)
