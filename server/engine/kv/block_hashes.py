"""Names for computed KV blocks: chained hashes seeded with the weights that computed them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import numpy as np

from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.kv.cache import BLOCK_SIZE


def _key(salt: bytes) -> bytes:
    """``salt`` as a key of BLAKE2b, which takes 64 bytes."""
    return hashlib.blake2b(salt, digest_size=64).digest()


class BlockHashes:
    """The hashes of the full blocks of one lane, extended as the lane grows.

    The chain starts from the weights' digest: state computed under other weights never matches. 128-bit BLAKE2b,
    because a collision would hand one user another's state.

    Args:
        salt: state computed under another salt never matches either, so that nobody learns from how much was reused
            what others have sent.
    """

    def __init__(self, weights: WeightsKey, salt: bytes = b"") -> None:
        # The salt goes in as a key: without it nobody can guess the start of the chain, nor any hash that follows from
        # it.
        digest = weights.digest()
        self._first = hashlib.blake2b(digest, key=_key(salt), digest_size=16).digest() if salt else digest
        self._last = self._first
        self._values: list[bytes] = []

    def emptied(self) -> BlockHashes:
        """The hashes of another text under the same weights and salt."""
        other = copy.copy(self)
        other._last, other._values = self._first, []
        return other

    def upto(self, tokens: Sequence[int], blocks: int) -> list[bytes]:
        """Hashes of the first ``blocks`` full blocks of ``tokens`` (which only ever grows at its end)."""
        start = len(self._values)
        if blocks > start:
            # Each hash takes in the one before it, so that one value stands for the whole prefix and not for its own
            # block alone.
            fresh = np.asarray(tokens[start * BLOCK_SIZE : blocks * BLOCK_SIZE], dtype="<u4")
            for block in fresh.reshape(-1, BLOCK_SIZE):
                self._last = hashlib.blake2b(self._last + block.tobytes(), digest_size=16).digest()
                self._values.append(self._last)
        return self._values[:blocks]
