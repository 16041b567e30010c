"""Attention over the blocks of a KV pool in the processor's unit for matrices: a decoded token's and a prompt's alike.

A segment of keys and values is packed as the unit reads it, once for all rows of a sequence that see it. Then the
queries of up to sixteen rows and of the heads that share a key are one matrix: scores = Q K^T, softmax row by row in
float32, values = P V with the weights P rounded to bfloat16. The unit forms each row of a product by itself and in the
order of its inputs, and what a row does not see has the weight 0; so a row's value depends on its own place alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Floats, Indices, PagedTokens
from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import address, interleave_words, largest, narrow, transpose_words, widen
from ladle.kernels.cpu.matrix_unit import CONFIGS, LINE, ROWS, configure, has_matrix_unit, matrix_tile, release
from ladle.kernels.cpu.segments import SEGMENT, first_segments, join_segments

_TOGETHER = 16
"""Rows of one sequence whose queries are one matrix."""
_STEP = 2 * ROWS
"""Tokens that one tile of weights and values adds up."""
_by_four, _by_one = matrix_tile(1, 4), matrix_tile(1, 1)


def can_attend(kv: Any, block: int) -> bool:
    """Whether the unit takes a pool [layers, slots, 2, kv heads, d] of ``block`` slots per block: bfloat16 patterns,
    heads of whole steps, blocks of whole tiles."""
    return has_matrix_unit() and kv.dtype == np.int16 and kv.shape[4] % _STEP == 0 and block % ROWS == 0


@inner(**INNER)
def _in_place(paged: PagedTokens, t: int, block: int) -> bool:
    """Whether row ``t`` is the next token of its sequence, and not a candidate for it, which lies somewhere else."""
    position = paged.positions[t]
    return paged.slot_mapping[t] == paged.block_table[paged.table_rows[t], position // block] * block + position % block


@inner(**INNER)
def _groups(paged: PagedTokens, window: int, block: int) -> Indices:
    """[groups, 3] first row, rows, segment: rows that follow each other in a sequence, with each segment they see.

    All groups of a sequence take a segment in turns, so that it is packed once for all of them.
    """
    # First pass: cut the rows into groups, up to _TOGETHER rows that follow each other in one sequence and whose own
    # keys lie where their positions say (candidates' do not), and count how many (group, segment) there are.
    tokens = paged.positions.shape[0]
    starts = np.empty((tokens, 2), np.int64)
    total, made, t = np.int64(0), 0, 0
    ends = np.empty(tokens, np.int64)  # the groups of a run end before this one
    while t < tokens:
        begun, last = made, np.int64(0)
        table = paged.table_rows[t]
        while t < tokens and paged.table_rows[t] == table:
            count = 1
            if _in_place(paged, t, block):
                while (
                    count < _TOGETHER
                    and t + count < tokens
                    and paged.table_rows[t + count] == table
                    and paged.positions[t + count] == paged.positions[t] + count
                    and _in_place(paged, t + count, block)
                ):
                    count += 1
            starts[made, 0], starts[made, 1] = t, count
            last = max(last, paged.positions[t + count - 1])
            made += 1
            t += count
        for group in range(begun, made):
            ends[group] = made
        total += (made - begun) * (last // SEGMENT + 1)
    # Second pass: list them, segment outside and group inside, without those that a sliding window hides from a group.
    groups = np.empty((total, 3), np.int64)
    count, begun = 0, 0
    while begun < made:
        end = ends[begun]
        last = np.int64(0)
        for group in range(begun, end):
            last = max(last, paged.positions[starts[group, 0] + starts[group, 1] - 1])
        for number in range(last // SEGMENT + 1):
            for group in range(begun, end):
                t, size = starts[group]
                lowest = max(np.int64(0), paged.positions[t] - window + 1) if window > 0 else np.int64(0)
                highest = paged.positions[t + size - 1]
                if lowest // SEGMENT <= number <= highest // SEGMENT:
                    groups[count, 0], groups[count, 1], groups[count, 2] = t, size, number
                    count += 1
        begun = end
    return groups[:count]


@inner(**INNER)
def _clear(values: Any, first: int, last: int) -> None:
    for head in range(values.shape[0]):
        for piece in range(values.shape[1]):
            for pair in range(first, last):
                for i in range(ROWS):
                    values[head, piece, pair, i] = 0


@inner(**INNER)
def _pack(
    table: Indices, kv: Any, block: int, begin: int, known: int, stop: int, keys: Any, values: Any, nothing: int
) -> None:
    """The keys and values of the tokens ``known`` to ``stop`` of a sequence into ``keys`` and ``values``, whose first
    token is ``begin``: as words of two numbers, sixteen tokens' side by side for keys, those of two tokens for values.

    Values up to the next whole step are zeros, since a weight of 0 does not make nothing of what is no number.
    ``nothing``: the address of sixteen zeros.
    """
    kv_heads, dim = kv.shape[2], kv.shape[3]
    start = address(kv)
    for part in range((known - begin) // ROWS, (stop - begin + ROWS - 1) // ROWS):
        place = begin + part * ROWS
        slot = table[place // block] * block + place % block
        for head in range(kv_heads):
            source = start + slot * kv.strides[0] + head * kv.strides[2]
            for piece in range(dim // _STEP):
                transpose_words(
                    source + piece * LINE,
                    kv.strides[0],
                    address(keys) + ((head * keys.shape[1] + part) * dim // 2 + piece * ROWS) * LINE,
                )
    pair, end = (known - begin) // 2, (stop - begin + _STEP - 1) // _STEP * _STEP
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
    _clear(values, pair, end // 2)


@inner(**INNER)
def _pack_own(kv: Any, slot: int, index: int, keys: Any, values: Any) -> None:
    """The key and value at ``slot`` as those of the ``index``-th token of the segment, the last one."""
    kv_heads, dim = kv.shape[2], kv.shape[3]
    for head in range(kv_heads):
        for i in range(dim // 2):
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


@inner(**INNER)
def _product(given: Any, held: int, apart: int, steps: int, blocks: int, made: Floats) -> None:
    """made[:, 16 j : 16 j + 16] for every block j: ``given`` times the tiles from the address ``held`` on, ``apart``
    bytes from one block to the next."""
    block = 0
    start, row, out, result = address(given), given.strides[0], address(made), made.strides[0]
    while block + 4 <= blocks:
        _by_four(given, start, row, held + block * apart, apart, out + block * LINE, result, steps, 0)
        block += 4
    while block < blocks:
        _by_one(given, start, row, held + block * apart, apart, out + block * LINE, result, steps, 0)
        block += 1


@inner(**INNER)
def _weigh(
    scores: Floats, low: int, high: int, end: int, scaling: float, weights: Any
) -> tuple[np.float32, np.float32]:
    """Softmax within the segment: ``scores`` from ``low`` to ``high`` -> ``weights``, rounded, with zeros up to
    ``end``. Returns the largest score and the sum of the weights."""
    for i in range(end):
        if i < low or i >= high:
            scores[i], weights[i] = -np.inf, 0
    most = largest(address(scores), end) * np.float32(scaling)
    own, made = scores[low:high], weights[low:high]
    for i in range(own.shape[0]):
        own[i] = exp(own[i] * np.float32(scaling) - most)
    for i in range(own.shape[0]):
        made[i] = narrow(own[i], made[i])
    together = np.float32(0)
    for i in range(made.shape[0]):
        together += widen(made[i])
    return most, together


@inner(**INNER)
def _attend_part(
    queries: Floats, paged: PagedTokens, kv: Any, block: int, heads: int, scaling: float, window: int,
    all_groups: Indices, firsts: Indices, sums: Floats, best: Floats, weight: Floats, parts: int, part: int,
) -> None:  # fmt: skip
    """What the rows of a part of ``all_groups`` see of their segments."""
    groups = all_groups[part * all_groups.shape[0] // parts : (part + 1) * all_groups.shape[0] // parts]
    kv_heads, dim = kv.shape[2], kv.shape[3]
    folded = heads // kv_heads
    words = np.empty(0, np.int32)
    keys = aligned((kv_heads, SEGMENT // ROWS, dim // 2, ROWS), words)
    values = aligned((kv_heads, dim // ROWS, SEGMENT // 2, ROWS), words)
    asked, weights = aligned((ROWS, dim), kv), aligned((ROWS, SEGMENT), kv)
    scores, made = aligned((ROWS, SEGMENT), queries), aligned((ROWS, dim), queries)
    segment_rows, nothing = np.empty(ROWS, np.int64), np.zeros(ROWS, np.int16)
    table, begin, known = np.int64(-1), np.int64(-1), np.int64(-1)  # what is packed: a sequence's tokens to ``known``
    for group in range(groups.shape[0]):
        t, size, number = groups[group]
        if paged.table_rows[t] != table or number * SEGMENT != begin:
            table, begin = paged.table_rows[t], number * SEGMENT
            known = begin
        position = paged.positions[t + size - 1]
        stop = min(position + 1, begin + SEGMENT)
        alone = position < begin + SEGMENT and not _in_place(paged, t + size - 1, block)
        own = stop - 1 if alone else stop
        if known < own:
            _pack(paged.block_table[table], kv, block, begin, known, own, keys, values, address(nothing))
            known = own
        if alone:
            # A candidate's own key is none of the sequence: the next row packs that place anew.
            if (own - begin) % _STEP == 0:
                _clear(values, (own - begin) // 2, (own - begin) // 2 + ROWS)
            _pack_own(kv, paged.slot_mapping[t], own - begin, keys, values)
            known = min(known, own)
        end = (stop - begin + _STEP - 1) // _STEP * _STEP
        for of in range(kv_heads):
            for first in range(0, size * folded, ROWS):
                count = min(ROWS, size * folded - first)
                for q in range(count):
                    row, head = t + (first + q) // folded, of * folded + (first + q) % folded
                    query, own_query = queries[row, head * dim : (head + 1) * dim], asked[q]
                    for i in range(dim):
                        own_query[i] = narrow(query[i], own_query[i])
                # Scores = Q K^T of up to ROWS (row, head) pairs that share a key head with the whole segment.
                configure(CONFIGS, count)
                blocks = (stop - begin + ROWS - 1) // ROWS
                _product(asked, address(keys[of]), dim // 2 * LINE, dim // _STEP, blocks, scores)
                for q in range(count):
                    row, head = t + (first + q) // folded, of * folded + (first + q) % folded
                    lowest = max(np.int64(0), paged.positions[row] - window + 1) if window > 0 else np.int64(0)
                    low, high = max(np.int64(0), lowest - begin), min(paged.positions[row] + 1 - begin, SEGMENT)
                    segment_rows[q] = firsts[row] + number - lowest // SEGMENT if low < high else -1
                    if low < high:
                        most, together = _weigh(scores[q], low, high, end, scaling, weights[q])
                        best[segment_rows[q], head], weight[segment_rows[q], head] = most, together
                    else:
                        for i in range(end):
                            weights[q, i] = 0
                # Sums = P V. The segment's maxima and masses are kept beside them, and ``join_segments`` rescales them.
                _product(weights, address(values[of]), SEGMENT // 2 * LINE, end // _STEP, dim // ROWS, made)
                for q in range(count):
                    if segment_rows[q] >= 0:
                        total = sums[segment_rows[q], of * folded + (first + q) % folded]
                        for i in range(dim):
                            total[i] = made[q, i]
    release()


_attend_beside = in_parts(_attend_part)


@inner(**INNER)
def attend_by_matrices(
    queries: Floats,
    paged: PagedTokens,
    kv: Any,
    block: int,
    heads: int,
    scaling: float,
    window: int,
    mixed: Any,
    threads: int,
) -> None:
    """What ``vector_attention.attend_by_vectors`` computes, for a pool of bfloat16 whose heads are whole steps and
    whose blocks are whole tiles; queries and weights are rounded to bfloat16."""
    dim = kv.shape[3]
    firsts = first_segments(paged, window)
    groups = _groups(paged, window, block)
    sums = np.empty((firsts[paged.positions.shape[0]], heads, dim), np.float32)
    best = np.empty((sums.shape[0], heads), np.float32)
    weight = np.empty((sums.shape[0], heads), np.float32)
    shared = (queries, paged, kv, block, heads, scaling, window, groups, firsts, sums, best, weight, threads)
    _attend_beside(shared, threads)
    join_segments(sums, best, weight, firsts, heads, mixed, threads)
