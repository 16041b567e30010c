"""How unsure a plan is of the next token, for sequences that ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.server.engine.requests.sequence import Sequence
from ladle.server.engine.scores.grammar_masks import Allowed


class Entropies:
    """The entropies of one step, in two parts: ``tensors`` are read together with the tokens, and ``said`` makes
    numbers of them."""

    def __init__(self, guided: Tensor, sequences: Seq[Sequence], allowed: Mapping[Sequence, Allowed]) -> None:
        """``guided`` [sequences, vocabulary]: the combined scores of ``sequences``, before any temperature; of those
        that may not draw all tokens, ``allowed`` says which."""
        self._places = [place for place, sequence in enumerate(sequences) if sequence.asks_entropy]
        self._sequences = [sequences[place] for place in self._places]
        self.tensors: list[Tensor] = []
        if self._places:
            # ``guided`` comes before the grammar's mask; the entropy is asked of what may really be drawn.
            scores = guided[self._places]
            for row, sequence in enumerate(self._sequences):
                if sequence in allowed:
                    scores[row].masked_fill_(~allowed[sequence].mask, -torch.inf)
            self.tensors = [dispatch.entropy(scores)]

    def said(self, tensors: Seq[Tensor]) -> dict[Sequence, float]:
        """The entropies in nats; ``tensors``: those above on the host."""
        return dict(zip(self._sequences, tensors[0].tolist(), strict=True)) if tensors else {}
