"""Sequences and the lanes that they take over."""

import random
from collections.abc import Sequence as Seq

import pytest
from seeds import fresh_seed
from tiny_engine import make_request

from ladle.guidance.plan import Source
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.kv.block_hashes import BlockHashes
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.sequence import Lane, Sequence


@pytest.mark.parametrize("salt", [b"", b"somebody"])
def test_a_lane_of_another_text_names_no_block_of_the_last_one(salt: bytes) -> None:
    """A question about an answer whose end was taken back found the state of what had stood there."""
    rng = random.Random(fresh_seed())
    weights = WeightsKey.of("revision", {})

    def text() -> list[int]:
        return [rng.randrange(300) for _ in range(2 * BLOCK_SIZE)]

    def names(tokens: Seq[int]) -> list[bytes]:
        return BlockHashes(weights, salt).upto(tokens, 2)

    before = text()
    after = [*before[:-1], before[-1] + 1]
    lane = Lane(Source("base", "base", 1.0, ()), weights, (), frozenset(), salt=salt, watches=True)
    Sequence(make_request("first", tuple(before[:5])), [lane])
    assert lane.hashes.upto(before, 2) == names(before)
    lane.published = 2
    asked = lane.asked()
    Sequence(make_request("second", tuple(before[:5])), [asked])
    assert asked.hashes.upto(after, 2) == names(after) and asked.published == 0
    assert names(after)[0] == names(before)[0] and names(after)[1] != names(before)[1]
