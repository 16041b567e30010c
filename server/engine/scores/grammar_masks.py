"""Where sequences stand in their grammars, and which tokens come next: computed while the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.requests.grammar import reason_of
from ladle.server.engine.requests.sequence import Sequence

TOO_COMPLEX = "the grammar is too complex"
_PATIENCE = 1.0  # seconds a step waits for a mask, twice; ordinary ones take a tenth of a millisecond
_THREADS = 8  # more than there are cores: a mask that takes long is not to hold the others up


@dataclass(frozen=True)
class Allowed:
    """The tokens that may come next: ``mask`` [vocabulary] bool on the device, and how many they are."""

    mask: Tensor
    count: int


class _Position:
    """One sequence in its grammar. ``mask``: the tokens that may come next, a bit each, once computed."""

    def __init__(self, sequence: Sequence) -> None:
        assert sequence.request.grammar is not None
        self.matcher = sequence.request.grammar.start()
        self.sequence = sequence
        self.error: str | None = None
        self.mask: Future[bytes]
        self.allowed: Allowed | None = None
        # A sequence that was preempted, or that goes on from a block, has tokens already.
        if sequence.output and not self.matcher.consume_tokens(sequence.output):
            self.error = f"{TOO_COMPLEX}: {reason_of(self.matcher)}"


class GrammarMasks:
    """Positions by slot. Not thread-safe: the engine thread owns it; masks are computed on threads of its own, from the
    moment a token is known until the scores of the next one are there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._positions: dict[int, _Position] = {}
        self._pool: ThreadPoolExecutor | None = None

    def admit(self, sequence: Sequence) -> None:
        """Take over the grammar of ``sequence``, if it has one, at the end of its output."""
        assert sequence.slot is not None
        self._positions.pop(sequence.slot, None)
        if sequence.request.grammar is not None:
            position = self._positions[sequence.slot] = _Position(sequence)
            self._look_ahead(position)

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Allowed]:
        """Which tokens may come next of those of ``sequences`` that have a grammar.

        None of them may where the grammar has failed (see ``error``).
        """
        found = {}
        for sequence in sequences:
            position = self._position(sequence)
            if position is not None:
                if position.allowed is None:
                    position.allowed = self._result(position, vocabulary)
                found[sequence] = position.allowed
        return found

    def advance(self, sequence: Sequence, token: int) -> bool:
        """Follow a drawn token; whether the grammar has come to its end, so that no text can follow."""
        position = self._position(sequence)
        if position is None or position.error is not None:
            return False
        if not position.matcher.consume_token(token):
            position.error = f"a token was drawn that the grammar does not allow: {reason_of(position.matcher)}"
            return False
        if position.matcher.is_stopped():
            return True
        self._look_ahead(position)
        return False

    def error(self, sequence: Sequence) -> str | None:
        """Why a sequence cannot go on."""
        position = self._position(sequence)
        return None if position is None else position.error

    def _position(self, sequence: Sequence) -> _Position | None:
        if sequence.request.grammar is None or sequence.slot is None:
            return None
        position = self._positions[sequence.slot]
        assert position.sequence is sequence
        return position

    def _look_ahead(self, position: _Position) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "ladle-grammar")
        position.allowed = None
        position.mask = self._pool.submit(position.matcher.compute_bitmask)

    def _result(self, position: _Position, vocabulary: int) -> Allowed:
        bits = np.zeros(vocabulary, dtype=np.bool_)
        if position.error is None:
            mask = _patiently(position.mask)
            if mask is None:
                position.error = f"{TOO_COMPLEX}: finding the next token takes too long"
            elif position.matcher.is_error():
                position.error = f"{TOO_COMPLEX}: {reason_of(position.matcher)}"
            else:
                # Ids beyond the tokenizer's are padding of the model; ids beyond the model's have no scores.
                known = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:vocabulary]
                bits[: len(known)] = known
        return Allowed(send_one(bits, self._device), int(bits.sum()))


def _patiently(mask: Future[bytes]) -> bytes | None:
    """The mask, or None where it takes too long."""
    for _ in range(2):
        try:
            return mask.result(_PATIENCE)
        except NotInTime:
            # A process that was stopped for a while finds its time over when it goes on: it gets another chance.
            continue
    return None


def restrict(scores: Tensor, places: Mapping[int, Allowed]) -> Tensor:
    """A copy of ``scores`` [rows, vocabulary] with -inf wherever the mask of a row, by its place, does not allow;
    ``scores`` itself where there are no masks. NaN stays what it is where it may be chosen."""
    if not places:
        return scores
    rows = send_one(list(places), scores.device, np.int64)
    forbidden = ~torch.stack([allowed.mask for allowed in places.values()])
    masked = scores.clone()
    masked[rows] = scores.index_select(0, rows).masked_fill_(forbidden, -torch.inf)
    return masked
