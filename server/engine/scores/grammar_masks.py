"""Where sequences stand in their grammars, and which tokens come next: computed while the model runs."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.grammars.grammar import Grammar
from ladle.server.engine.grammars.pool import GrammarPool, Position
from ladle.server.engine.grammars.spec import too_complex
from ladle.server.engine.requests.sequence import Sequence


@dataclass(frozen=True)
class Allowed:
    """The tokens that may come next.

    Attributes:
        mask: [vocabulary] bool, on the device.
        count: how many they are.
    """

    mask: Tensor
    count: int


@dataclass(eq=False)
class _GrammarState:
    """One sequence in its grammar. ``allowed``: the tokens that may come next, once somebody has asked."""

    sequence: Sequence
    grammar: Grammar
    position: Position
    allowed: Allowed | None = None


class GrammarMasks:
    """Positions by slot. Not thread-safe: the engine thread owns it; masks are computed in processes of their own, from
    the moment a token is known until the scores of the next one are there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._followed: dict[int, _GrammarState] = {}

    def admit(self, sequence: Sequence) -> None:
        """Take over the grammar of ``sequence``, if it has one, at the end of its output."""
        assert sequence.slot is not None
        # Whoever had this slot is gone, preempted or ended without a word to us.
        self._finish_those_gone(sequence.slot)
        grammar = sequence.request.grammar
        if grammar is not None:
            # A sequence that was preempted, or that goes on from a block, has tokens already.
            own = [] if (start := _start(sequence)) is None else sequence.output[start:]
            self._followed[sequence.slot] = _GrammarState(sequence, grammar, grammar.start(own))

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Allowed]:
        """Which tokens may come next of those of ``sequences`` that have a grammar and whose answer may begin or go on.

        Where a thought may come before the answer, the token that begins its tag may come besides.
        None of them may where the grammar has failed (see ``error``).
        """
        followed = {s: state for s in sequences if (state := self._of(s)) is not None and _start(s) is not None}
        # A vocabulary mask per position, computed by the grammar's own process since the last token was drawn.
        for pool, waiting in _by_pool([state for state in followed.values() if state.allowed is None]).items():
            pool.masks([state.position for state in waiting])
            for state in waiting:
                state.allowed = self._result(state, vocabulary)
        return {s: state.allowed for s, state in followed.items() if state.allowed is not None}

    def advance(self, sequences: Seq[Sequence], tokens: Seq[int]) -> None:
        """Follow the drawn tokens of those of ``sequences`` that have a grammar, as far as they are of the answer."""
        # The workers are told at once, and compute the next masks beside the next forward; this waits only for whether
        # the tokens were taken.
        drawn = dict(zip(sequences, tokens, strict=True))
        states = [state for s in sequences if (state := self._of(s)) is not None and state.position.error is None]
        for state in states:
            state.allowed = None  # also where a thought begins, whose tag may come no second time
        followed = [state for state in states if _answers(state.sequence, drawn[state.sequence])]
        for pool, moving in _by_pool(followed).items():
            pool.advance([(state.position, drawn[state.sequence]) for state in moving])

    def ended(self, sequence: Sequence) -> bool:
        """Whether the grammar has come to its end, so that no text can follow."""
        state = self._of(sequence)
        return state is not None and state.position.stopped

    def error(self, sequence: Sequence) -> str | None:
        """Why a sequence cannot go on."""
        state = self._of(sequence)
        return None if state is None else state.position.error

    def _of(self, sequence: Sequence) -> _GrammarState | None:
        if sequence.request.grammar is None or sequence.slot is None:
            return None
        state = self._followed[sequence.slot]
        assert state.sequence is sequence
        return state

    def _finish_those_gone(self, slot: int) -> None:
        """Nobody says when a sequence gives up its slot, so that is looked for whenever one is taken."""
        for taken, state in list(self._followed.items()):
            if taken == slot or state.sequence.slot != taken:
                del self._followed[taken]
                state.grammar.pool.finish(state.position)

    def _result(self, state: _GrammarState, vocabulary: int) -> Allowed:
        # Nothing is allowed where the grammar has failed or ended; the engine ends such a sequence by what ``error``
        # and ``ended`` say.
        bits = np.zeros(vocabulary, dtype=np.bool_)
        if state.position.error is None and not state.position.stopped:
            mask = np.frombuffer(state.grammar.pool.mask(state.position), dtype=np.uint8)
            # Ids beyond the tokenizer's are padding of the model; ids beyond the model's have no scores.
            known = np.unpackbits(mask, bitorder="little")[:vocabulary]
            bits[: len(known)] = known
            if not bits.any():
                # The library saw neither an error nor an end; that no score is allowed is no fault of the model.
                state.position.error = too_complex("it came to a dead end: no token may come next")
            elif (thought := state.sequence.thought) is not None and thought.opening is not None:
                bits[thought.opening] = True
        return Allowed(send_one(bits, self._device), int(bits.sum()))


def _start(sequence: Sequence) -> int | None:
    """Index of the answer's first token, if that may come next or is there; None before that."""
    thought = sequence.thought
    return 0 if thought is None else thought.start if thought.may_answer else None


def _answers(sequence: Sequence, token: int) -> bool:
    thought = sequence.thought
    return thought is None or thought.answers(token)


def _by_pool(followed: Seq[_GrammarState]) -> dict[GrammarPool, list[_GrammarState]]:
    groups: dict[GrammarPool, list[_GrammarState]] = {}
    for one in followed:
        groups.setdefault(one.grammar.pool, []).append(one)
    return groups
