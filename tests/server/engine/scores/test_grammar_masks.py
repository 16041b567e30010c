"""Masks of sequences in grammars, over a double of the processes that compute them."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ladle.merging.exceptions import code_of
from ladle.server.engine.grammars.pool import Position
from ladle.server.engine.grammars.spec import GrammarSpec
from ladle.server.engine.scores.grammar_masks import GrammarMasks

VOCABULARY = 20


class Running(SimpleNamespace):
    """What masks need of a sequence; by itself it is a key, unlike its fields."""

    __hash__ = object.__hash__


class Pool:
    """Says that ``ids`` may come next."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = set(ids)

    def masks(self, positions: Sequence[Position]) -> None:
        for position in positions:
            position.ready = True

    def mask(self, position: Position) -> bytes:
        bits = sum(1 << token for token in self.ids)
        return bits.to_bytes(8, "little")


def sequence_of(pool: Pool) -> Any:
    grammar = SimpleNamespace(pool=pool, start=lambda tokens: Position(GrammarSpec("regex", "a"), list(tokens), 1))
    return Running(slot=0, output=[], thought=None, request=SimpleNamespace(grammar=grammar))


@pytest.mark.parametrize(("ids", "dead"), [({3, 7}, False), (set(), True), ({25}, True), ({3, 25}, False)])
def test_where_no_token_may_come_the_grammar_is_at_fault(ids: set[int], dead: bool) -> None:
    """Tokens that the model has no scores for are none."""
    masks = GrammarMasks(torch.device("cpu"))
    sequence = sequence_of(Pool(ids))
    masks.admit(sequence)
    allowed = masks.allowed([sequence], VOCABULARY)[sequence]
    assert allowed.mask.nonzero().flatten().tolist() == sorted(ids - {25}) and allowed.count == len(ids - {25})
    error = masks.error(sequence)
    assert (error is not None) == dead
    assert error is None or code_of(error) == "grammar_too_complex"
