"""Of which tokens the draft model has the state: a short piece at the end of the text of the sequence in each slot."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from weakref import ReferenceType, ref

from ladle.server.engine.requests.sequence import Sequence

FRESH = 4
"""A row that begins anew takes the last 1/FRESH of a window: reading costs time, and every row fills up by itself."""


@dataclass
class _Row:
    """The state of one slot.

    Attributes:
        owner: whose tokens they are; None while nobody's.
        start: the place of the first one in its text.
        held: those whose state is there.
    """

    owner: ReferenceType[Sequence] | None = None
    start: int = 0
    held: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Lack:
    """What a row has to compute.

    Attributes:
        slot: of the row.
        kept: tokens in front whose state stays.
        tokens: those that follow, at least one.
        fresh: whether the row begins anew.
    """

    slot: int
    kept: int
    tokens: list[int]
    fresh: bool


class DraftRows:
    """Rows by slot. Each is checked against the text that it is of, token by token, whenever it is used: preemption,
    a change of plans, rejected guesses and a slot's next owner need no word to anybody."""

    def __init__(self, slots: int, window: int) -> None:
        """``window``: tokens of a text that a row holds at most, guesses not counted."""
        self._window = window
        self._rows = [_Row() for _ in range(slots)]

    @property
    def held(self) -> int:
        """Rows of sequences that have a slot."""
        owners = [None if row.owner is None else row.owner() for row in self._rows]
        return sum(owner is not None and owner.slot is not None for owner in owners)

    def lack(self, sequence: Sequence, guessed: Seq[int] = ()) -> Lack:
        """What the row of ``sequence`` lacks of its text with ``guessed`` behind it. Changes nothing."""
        assert sequence.slot is not None
        row, length = self._rows[sequence.slot], len(sequence.request.prompt) + len(sequence.output)
        if row.owner is not None and row.owner() is sequence and row.start < length <= row.start + self._window:
            wanted = [*_text(sequence, row.start), *guessed]
            # The state of the last token is there as a rule where nothing new has come; its logits are not.
            kept = min(_common(row.held, wanted), len(wanted) - 1)
            # Who was away for long is not read up on: the end of the text says nearly as much.
            if len(wanted) - len(guessed) - kept <= max(1, self._window // FRESH):
                return Lack(sequence.slot, kept, wanted[kept:], False)
        return Lack(sequence.slot, 0, [*_text(sequence, self._start(length)), *guessed], True)

    def computed(self, sequence: Sequence, lack: Lack, count: int) -> None:
        """The first ``count`` tokens that the row of ``sequence`` lacked are there."""
        row = self._rows[lack.slot]
        if lack.fresh:
            row.owner, row.held = ref(sequence), []
            row.start = self._start(len(sequence.request.prompt) + len(sequence.output))
        del row.held[lack.kept :]
        row.held += lack.tokens[:count]

    def _start(self, length: int) -> int:
        return max(0, length - max(1, self._window // FRESH))


def _text(sequence: Sequence, start: int) -> list[int]:
    """The tokens of ``sequence`` from ``start`` on, prompt and answer."""
    prompt, output = sequence.request.prompt, sequence.output
    return [*prompt[start:], *output[max(0, start - len(prompt)) :]]


def _common(held: Seq[int], wanted: Seq[int]) -> int:
    """How many tokens at the beginning are the same."""
    most = min(len(held), len(wanted))
    if held[:most] == wanted[:most]:
        return most
    return next(index for index in range(most) if held[index] != wanted[index])
