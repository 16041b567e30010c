"""Answers that may not end yet: the tokens that would end them may not come."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.grammar_masks import Allowed


def ending_tokens(sampling: SamplingParams, eos: frozenset[int]) -> frozenset[int]:
    """The tokens that end an answer."""
    return sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else eos)


class LeastLength:
    """Masks of sequences that have not reached ``min_tokens``. Like the mask of a grammar it holds for whatever a plan
    does: candidates are chosen among what is left, and a plan's own mask is judged within it."""

    def __init__(self, device: torch.device, eos: frozenset[int]) -> None:
        """``eos``: the ids that end a text."""
        self._device = device
        self._eos = eos
        self._known: dict[tuple[frozenset[int], int], Allowed] = {}

    def allowed(self, sequences: Seq[Sequence], vocabulary: int) -> dict[Sequence, Allowed]:
        """Which tokens may come next of those of ``sequences`` that may not end yet."""
        masks = {}
        for sequence in sequences:
            sampling = sequence.request.sampling
            if len(sequence.output) < sampling.min_tokens:
                ending = ending_tokens(sampling, self._eos)
                if ending:
                    masks[sequence] = self.without(ending, vocabulary)
        return masks

    def without(self, ending: frozenset[int], vocabulary: int) -> Allowed:
        """All tokens but those of ``ending``."""
        # Masks are shared by all requests that end by the same tokens: a mask is as large as the vocabulary.
        key = (ending, vocabulary)
        if key not in self._known:
            if len(self._known) >= 64:  # every request may name its own
                self._known.clear()
            bits = np.ones(vocabulary, dtype=np.bool_)
            bits[[token for token in ending if token < vocabulary]] = False
            self._known[key] = Allowed(send_one(bits, self._device), int(bits.sum()))
        return self._known[key]
