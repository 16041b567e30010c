"""When a draft model guesses, how far, and which of its guesses are worth being checked."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.schedule.draft_pace import GuessPace

_BOUNDS = (0.1, 0.25, 0.5, 0.75)
_FIRST_RATES = (0.05, 0.17, 0.37, 0.62, 0.87)
"""Classes of guesses, by how likely the model holds them, and how often those of each are right before any was seen."""
_NEWEST, _NEWEST_OF_ALL = 0.125, 0.02
"""Weights of the newest guess in what is known of its sequence, and of all sequences."""
_FIRST_GAIN = 0.4
"""Tokens that a guess saves, before any was seen."""
_FIRST_PAUSE, _LONGEST_PAUSE = 8, 256
"""Tokens after which a sequence that is not guessed at is tried again; twice as many each time."""
_READ_FOR = 64
"""Over so many tokens, or what an answer still has, the cost of reading its text is spread."""


class Guesser(Protocol):
    """A draft model."""

    @property
    def held(self) -> int:
        """Sequences with a slot whose text it keeps the state of."""
        ...

    def lacks(self, sequence: Sequence) -> int:
        """Tokens that it has to read before it can guess."""
        ...

    def read(self, sequences: Seq[Sequence]) -> None:
        """Read these, but for the last one of each."""
        ...

    def guess(self, sequences: Seq[Sequence], guessed: Seq[Seq[int]]) -> list[tuple[int, float]]:
        """One more token of each, after what was ``guessed``, and how likely the model holds it."""
        ...


@dataclass
class _Trust:
    """What is known of guesses.

    Attributes:
        rates: by class, how often they are right.
        gain: tokens that the next guess saves, less what it costs to have it checked.
    """

    rates: list[float] = field(default_factory=lambda: list(_FIRST_RATES))
    gain: float = _FIRST_GAIN


@dataclass
class _Record:
    """The guesses at one sequence.

    Attributes:
        trust: what is known of them.
        written: tokens of the answer that were compared.
        guess: what was held to come next, checked or not; and the class of each.
        pause: tokens between two tries where it does not pay.
        wait: tokens until the next one.
    """

    trust: _Trust
    written: int
    guess: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    pause: int = _FIRST_PAUSE
    wait: int = _FIRST_PAUSE


@dataclass(frozen=True)
class Wanted:
    """What a guess at a sequence may be.

    Attributes:
        most: tokens.
        row_cost: of having one checked, as a share of what it may save.
    """

    most: int
    row_cost: float


class ModelGuesses:
    """The guesses of a draft model. For the engine's thread.

    How often a guess is right depends on how likely the model holds it: five classes, learned for every sequence, which
    begins with what all others taught. One more guess is made as long as the token that it is likely to save is worth
    more than the model's forward.
    """

    def __init__(self, guesser: Guesser, most: int) -> None:
        """``most``: tokens that are guessed of a sequence in a step."""
        self.most = most
        self.pace = GuessPace()
        self._guesser = guesser
        self._all = _Trust()
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()

    @property
    def held(self) -> int:
        """Sequences with a slot whose text the model keeps the state of."""
        return self._guesser.held

    def follow(self, sequence: Sequence) -> None:
        """Learn from the tokens that have come. A guess counts up to its first wrong token, whether or not anybody had
        it checked."""
        record = self._records.get(sequence)
        if record is None:
            trust = _Trust(list(self._all.rates), self._all.gain)
            self._records[sequence] = _Record(trust, len(sequence.output))
            return
        came = sequence.output[record.written :]
        for guessed, kind, token in zip(record.guess, record.classes, came, strict=False):
            for trust, newest in ((record.trust, _NEWEST), (self._all, _NEWEST_OF_ALL)):
                trust.rates[kind] += newest * ((guessed == token) - trust.rates[kind])
            if guessed != token:
                break
        record.wait -= len(came)
        record.written = len(sequence.output)
        record.guess, record.classes = [], []

    def guess(self, wanted: Mapping[Sequence, Wanted], share: float) -> dict[Sequence, tuple[int, ...]]:
        """Guesses that are worth being checked, at those of ``wanted``, all of which were followed, that are worth
        guessing at. ``share``: seconds that one token less to compute saves a sequence."""
        going = {sequence: self._records[sequence] for sequence in wanted if wanted[sequence].most > 0}
        # Who is only tried gets one guess, whatever it costs.
        tried = set()
        for sequence, record in list(going.items()):
            if self._pays(sequence, record.trust.gain * share, len(wanted)):
                record.pause = record.wait = _FIRST_PAUSE
            elif record.wait <= 0:
                tried.add(sequence)
                record.pause = record.wait = min(2 * record.pause, _LONGEST_PAUSE)
            else:
                del going[sequence]
        if not going:
            return {}
        self._read(list(going))
        chances = {sequence: [1.0] for sequence in going}
        alone = list(going)
        while alone:
            self._guess_once(alone, chances, wanted)
            cost = self.pace.forward(len(alone)) / len(alone) / share
            alone = [
                sequence
                for sequence in alone
                if sequence not in tried
                and len(going[sequence].guess) < wanted[sequence].most
                and chances[sequence][-1] * going[sequence].trust.gain > cost
            ]
        return {
            sequence: tuple(record.guess[:count])
            for sequence, record in going.items()
            if (count := sum(chance > wanted[sequence].row_cost for chance in chances[sequence][1:]))
        }

    def _pays(self, sequence: Sequence, gain: float, together: int) -> bool:
        """Whether ``gain``, seconds that the next guess at ``sequence`` saves, is more than it takes in a forward of
        ``together`` sequences, and in reading the text first."""
        forward = self.pace.forward(together) / together
        if gain <= forward:
            return False
        lacks = self._guesser.lacks(sequence)
        last = sequence.request.sampling.max_tokens - len(sequence.output)
        reading = self.pace.reading(lacks) if lacks > self.most + 1 else 0.0
        return gain > forward + reading / max(1, min(last, _READ_FOR))

    def _read(self, going: Seq[Sequence]) -> None:
        """Let the model read what it lacks, where that is more than what the last guesses left."""
        behind = {sequence: lacks for sequence in going if (lacks := self._guesser.lacks(sequence)) > self.most + 1}
        if behind:
            start = time.perf_counter()
            self._guesser.read(list(behind))
            self.pace.note_reading(sum(behind.values()), time.perf_counter() - start)

    def _guess_once(
        self, going: Seq[Sequence], chances: Mapping[Sequence, list[float]], wanted: Mapping[Sequence, Wanted]
    ) -> None:
        """One more token for each of ``going``, and the chance that it and all before it are right."""
        start = time.perf_counter()
        records = [self._records[sequence] for sequence in going]
        given = self._guesser.guess(going, [record.guess for record in records])
        self.pace.note_forward(len(going), time.perf_counter() - start)
        for sequence, record, (token, likely) in zip(going, records, given, strict=True):
            kind = bisect_right(_BOUNDS, likely)
            record.guess.append(token)
            record.classes.append(kind)
            rate = record.trust.rates[kind]
            chances[sequence].append(chances[sequence][-1] * rate)
            saved = max(0.0, rate - wanted[sequence].row_cost)
            for trust, newest in ((record.trust, _NEWEST), (self._all, _NEWEST_OF_ALL)):
                trust.gain += newest * (saved - trust.gain)
