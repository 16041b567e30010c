"""Who holds which KV blocks, and which blocks still hold a prefix worth reusing. Pure bookkeeping, no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class OutOfBlocks(Exception):
    """No free block is left; the scheduler answers by preempting."""


class BlockManager:
    """Hands out blocks 1..blocks-1 (0 is the padding block), counts references, remembers computed prefixes.

    A block with no reference stays findable until it is handed out again, least recently freed first.
    """

    def __init__(self, blocks: int) -> None:
        if blocks < 2:
            raise ValueError("a KV pool needs at least two blocks")
        self.total = blocks - 1
        self._references = [0] * blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(1, blocks))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def remembered(self) -> int:
        """Blocks whose state may be reused."""
        return len(self._hash_of)

    def allocate(self) -> int:
        """A block of one's own. Raises OutOfBlocks."""
        if not self._free:
            raise OutOfBlocks
        # Least recently freed first; only now is the prefix that it held forgotten.
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix, each with one more reference held by the caller."""
        blocks = []
        for value in hashes:
            block = self._block_of.get(value)
            if block is None:
                break
            # A block that nobody holds any more is taken out of the free list again: its state is still there.
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
            blocks.append(block)
        return blocks

    def known(self, hashes: Sequence[bytes]) -> int:
        """How many of the leading ``hashes`` could be matched now."""
        return next((n for n, value in enumerate(hashes) if value not in self._block_of), len(hashes))

    def publish(self, block: int, value: bytes) -> None:
        """Let others reuse ``block``, now that all its tokens are computed. The first block with a hash keeps it."""
        # Two lanes may compute the same block at once: the second copy is not findable, and is forgotten with its
        # owner.
        if value not in self._block_of and block not in self._hash_of:
            self._block_of[value] = block
            self._hash_of[block] = value

    def release(self, blocks: Iterable[int]) -> None:
        """Give up one reference to each block; the tail goes first so that prefixes outlive their continuations."""
        # Freed last, evicted last: a prefix is worth more than what came after it, and useless without what comes
        # before.
        for block in reversed(list(blocks)):
            self._references[block] -= 1
            if self._references[block] < 0:
                raise AssertionError(f"block {block} released more often than taken")
            if self._references[block] == 0:
                self._free[block] = None

    def forget_prefixes(self) -> None:
        """Drop every reusable prefix (weights were replaced, or an operator asked)."""
        self._hash_of.clear()
        self._block_of.clear()

    def _forget(self, block: int) -> None:
        value = self._hash_of.pop(block, None)
        if value is not None:
            # Both directions go together: a block is found by one hash, and a hash names one block.
            del self._block_of[value]

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless references, the free list and the tables ``held`` by lanes agree."""
        expected = [0] * len(self._references)
        for table in held:
            for block in table:
                expected[block] += 1
        if expected != self._references:
            wrong = [b for b, (e, r) in enumerate(zip(expected, self._references, strict=True)) if e != r]
            raise AssertionError(f"blocks {wrong[:8]} are referenced otherwise than the lanes hold them")
        if set(self._free) != {b for b in range(1, len(expected)) if expected[b] == 0}:
            raise AssertionError("the free list disagrees with the reference counts")
