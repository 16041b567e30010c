"""Which tokens may come while a sequence thinks: any, or the one that ends a thought whose budget is used up."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.requests.thinking import Thought, ThoughtPhase
from ladle.server.engine.scores.grammar_masks import Allowed
from ladle.server.engine.scores.least_length import LeastLength

_KNOWN = 64  # masks of single tokens; every request may bring a message of its own


class ThoughtMasks:
    """Masks of sequences with a thought. Where a thought may be as it likes there is none, so that its tokens are drawn
    as without a budget; where it ends, it holds for whatever a plan does, like the mask of a grammar."""

    def __init__(self, device: torch.device, least: LeastLength, eos: frozenset[int]) -> None:
        """``least``: makes masks of all tokens but some; ``eos``: the ids that end a text."""
        self._device = device
        self._least = least
        self._eos = eos
        self._known: dict[tuple[int, int], Allowed] = {}

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Allowed]:
        """Which tokens may come next of those of ``sequences`` whose thought decides that, whatever else would."""
        masks: dict[Sequence, Allowed] = {}
        for sequence in sequences:
            thought = sequence.thought
            if thought is None or thought.phase is ThoughtPhase.AFTER:
                continue
            # A budget that is used up forces one token after the other: the message, then the closing tag.
            token = thought.forced
            if token is not None:
                masks[sequence] = self._only(token, vocabulary)
            elif sequence.request.grammar is not None:
                masks |= self._beside_grammar(sequence, thought, vocabulary)
        return masks

    def _beside_grammar(self, sequence: Sequence, thought: Thought, vocabulary: int) -> dict[Sequence, Allowed]:
        """The grammar is of the answer: a thought may come before it, but no end instead of it."""
        if thought.may_answer:
            return {}  # the grammar's mask knows of the tag
        opening = thought.opening
        if opening is not None:  # a tag that is begun is no text of the grammar
            return {sequence: self._only(opening, vocabulary)}
        ending: frozenset[int] = frozenset() if sequence.request.sampling.ignore_eos else self._eos
        return {sequence: self._least.without(ending, vocabulary)}

    def _only(self, token: int, vocabulary: int) -> Allowed:
        key = (token, vocabulary)
        if key not in self._known:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            bits = np.zeros(vocabulary, dtype=np.bool_)
            bits[token] = True
            self._known[key] = Allowed(send_one(bits, self._device), 1)
        return self._known[key]
