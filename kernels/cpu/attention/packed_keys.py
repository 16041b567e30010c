"""Keys and values of a segment as the unit for matrices reads them, packed once for all rows that see them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Indices, PagedTokens
from ladle.kernels.cpu.attention.segments import SEGMENT
from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.intrinsics import address, interleave_words, transpose_words
from ladle.kernels.cpu.matrix_unit import LINE, ROWS

TOGETHER = 16
"""Rows of one sequence whose queries are one group."""
STEP = 2 * ROWS
"""Tokens that one tile of weights and values adds up."""
_MOST_BYTES = 64 << 20
"""Of what all threads keep packed. Beyond that segments are packed anew for every group of rows."""


class PackedKeys(NamedTuple):
    """Room for packed segments, the ``n``-th of a sequence in the place ``n`` modulo ``kept``.

    Attributes:
        keys: [threads, kept, kv heads, 8, d / 2, 16] int32: words of two numbers of a key, sixteen tokens' side by
            side.
        values: [threads, kept, kv heads, d / 16, 64, 16] int32: words of the same number of two tokens.
    """

    keys: Any
    values: Any


@inner(**INNER)
def room_for_keys(paged: PagedTokens, kv: Any, threads: int) -> PackedKeys:
    """Room for the segments of the sequences that have several groups of rows in a step, and for one of any other."""
    kv_heads, dim = kv.shape[2], kv.shape[3]
    kept, first, tokens = 1, 0, paged.positions.shape[0]
    while first < tokens:
        last, most = first, np.int64(0)
        while last < tokens and paged.table_rows[last] == paged.table_rows[first]:
            most = max(most, paged.positions[last])
            last += 1
        # Up to TOGETHER rows are one group and see a segment once; a longer run comes back to each segment with every
        # group, so that keeping all of its segments pays.
        if last - first > TOGETHER:
            kept = max(kept, int(most) // SEGMENT + 1)
        first = last
    kept = max(1, min(kept, _MOST_BYTES // (threads * SEGMENT * kv_heads * dim * 4)))
    words = np.empty(0, np.int32)
    return PackedKeys(
        aligned((threads, kept, kv_heads, SEGMENT // ROWS, dim // 2, ROWS), words),
        aligned((threads, kept, kv_heads, dim // ROWS, SEGMENT // 2, ROWS), words),
    )


@inner(**INNER)
def clear(values: Any, first: int, last: int) -> None:
    for head in range(values.shape[0]):
        for piece in range(values.shape[1]):
            for pair in range(first, last):
                for i in range(ROWS):
                    values[head, piece, pair, i] = 0


@inner(**INNER)
def pack(
    table: Indices, kv: Any, block: int, begin: int, known: int, stop: int, keys: Any, values: Any, nothing: int
) -> None:
    """The keys and values of the tokens ``known`` to ``stop`` of a sequence into ``keys`` and ``values``, whose first
    token is ``begin``: as words of two numbers, sixteen tokens' side by side for keys, those of two tokens for values.

    Values up to the next whole step are zeros, since a weight of 0 does not make nothing of what is no number.
    ``nothing``: the address of sixteen zeros.
    """
    kv_heads, dim = kv.shape[2], kv.shape[3]
    start = address(kv)
    # Keys: a tile is sixteen tokens of one block, transposed so that step i holds numbers 2i and 2i + 1 of all sixteen.
    # The tile that ``known`` falls into is packed anew as a whole; blocks are whole tiles, so its slots follow each
    # other.
    for part in range((known - begin) // ROWS, (stop - begin + ROWS - 1) // ROWS):
        place = begin + part * ROWS
        slot = table[place // block] * block + place % block
        for head in range(kv_heads):
            source = start + slot * kv.strides[0] + head * kv.strides[2]
            for piece in range(dim // STEP):
                transpose_words(
                    source + piece * LINE,
                    kv.strides[0],
                    address(keys) + ((head * keys.shape[1] + part) * dim // 2 + piece * ROWS) * LINE,
                )
    # Values: a step holds the same number of two tokens, because P V sums over tokens as Q K^T does over numbers.
    pair, end = (known - begin) // 2, (stop - begin + STEP - 1) // STEP * STEP
    pieces = dim // ROWS
    made = address(values)
    while 2 * pair < stop - begin:
        place = begin + 2 * pair
        slot = table[place // block] * block + place % block
        # The last token of an odd number is paired with zeros.
        whole = place + 1 < stop
        for head in range(kv_heads):
            one = start + slot * kv.strides[0] + kv.strides[1] + head * kv.strides[2]
            other = one + kv.strides[0] if whole else nothing
            for piece in range(pieces):
                to = made + ((head * pieces + piece) * values.shape[2] + pair) * LINE
                interleave_words(one + piece * (LINE // 2), other + (piece * (LINE // 2) if whole else 0), to)
        pair += 1
    clear(values, pair, end // 2)


@inner(**INNER)
def pack_own(kv: Any, slot: int, index: int, keys: Any, values: Any) -> None:
    """The key and value at ``slot`` as those of the ``index``-th token of the segment, the last one."""
    kv_heads, dim = kv.shape[2], kv.shape[3]
    for head in range(kv_heads):
        for i in range(dim // 2):
            # A pair as one word, the first number in the lower half; unsigned, or its sign would fill the upper one.
            low, high = np.uint16(kv[slot, 0, head, 2 * i]), kv[slot, 0, head, 2 * i + 1]
            keys[head, index // ROWS, i, index % ROWS] = np.int32(low) | (np.int32(high) << np.int32(16))
        for piece in range(values.shape[1]):
            own = values[head, piece, index // 2]
            for i in range(ROWS):
                number = kv[slot, 1, head, piece * ROWS + i]
                if index % 2:
                    own[i] = (own[i] & 0xFFFF) | (np.int32(number) << np.int32(16))
                else:
                    own[i] = np.int32(np.uint16(number))
