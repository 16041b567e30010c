"""Attention over the blocks of a KV pool in the processor's unit for matrices: a decoded token's and a prompt's alike.

A segment of keys and values is packed as the unit reads it, once for all rows of a sequence that see it. Then the
queries of up to sixteen rows and of the heads that share a key are matrices: scores = Q K^T, softmax row by row in
float32, values = P V with the weights P rounded to bfloat16, carried from segment to segment (the online softmax). The
unit forms each row of a product by itself and in the order of its inputs, and what a row does not see has the weight 0;
so a row's value depends on its own place alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Floats, Indices, PagedTokens
from ladle.kernels.cpu.attention.packed_keys import STEP, TOGETHER, PackedKeys, clear, pack, pack_own
from ladle.kernels.cpu.attention.segments import SEGMENT, first_seen
from ladle.kernels.cpu.compiling.compiler import EXACT, INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import address, largest, narrow, rescale, soften
from ladle.kernels.cpu.matrix_unit import CONFIGS, LINE, ROWS, configure, has_matrix_unit, matrix_tile, release

_by_four, _by_one = matrix_tile(1, 4), matrix_tile(1, 1)
_UNSEEN = np.float32(-1)
"""The sum of the weights of a segment that a row sees nothing of."""


def can_attend(kv: Any, block: int) -> bool:
    """Whether the unit takes a pool [layers, slots, 2, kv heads, d] of ``block`` slots per block: bfloat16 patterns,
    heads of whole steps, blocks of whole tiles."""
    return has_matrix_unit() and kv.dtype == np.int16 and kv.shape[4] % STEP == 0 and block % ROWS == 0


@inner(**INNER)
def _in_place(paged: PagedTokens, t: int, block: int) -> bool:
    """Whether row ``t`` is the next token of its sequence, and not a candidate for it, which lies somewhere else."""
    position = paged.positions[t]
    return paged.slot_mapping[t] == paged.block_table[paged.table_rows[t], position // block] * block + position % block


@inner(**INNER)
def _groups(paged: PagedTokens, window: int, block: int, threads: int, heads: int) -> tuple[Indices, int]:
    """[groups, 6]: first row, rows, first segment, the one behind the last, segments of the groups before, and where
    the parts of a group begin that several threads share, or -1; and how many parts there are.

    Up to TOGETHER rows are a group that follow each other in one sequence and whose own keys lie where their positions
    say (candidates' do not).
    """
    tokens = paged.positions.shape[0]
    groups = np.empty((tokens, 6), np.int64)
    made, t, total = 0, 0, np.int64(0)
    while t < tokens:
        count = 1
        if _in_place(paged, t, block):
            while (
                count < TOGETHER
                and t + count < tokens
                and paged.table_rows[t + count] == paged.table_rows[t]
                and paged.positions[t + count] == paged.positions[t] + count
                and _in_place(paged, t + count, block)
            ):
                count += 1
        lowest = first_seen(paged.positions[t], window)
        own = groups[made]
        own[0], own[1], own[4] = t, count, total
        own[2], own[3] = lowest // SEGMENT, paged.positions[t + count - 1] // SEGMENT + 1
        total += own[3] - own[2]
        made += 1
        t += count
    # A thread takes as many segments as any other. Of the groups on a border each keeps what its segments gave apart.
    parts = 0
    for group in range(made):
        own = groups[group]
        first, last = own[4], own[4] + own[3] - own[2]
        own[5] = -1
        for part in range(1, threads):
            if first < part * total // threads < last:
                own[5] = parts
        if own[5] >= 0:
            parts += int(last - first) * int(own[1]) * heads
    return groups[:made], parts


@inner(**INNER)
def _segments(groups: Indices) -> int:
    """Of all groups together."""
    return int(groups[-1, 4] + groups[-1, 3] - groups[-1, 2]) if groups.shape[0] > 0 else 0


@inner(**INNER)
def _product(
    like: Any, given: int, row: int, held: int, apart: int, steps: int, blocks: int, made: int, line: int
) -> None:
    """Rows ``row`` bytes apart from the address ``given`` on times the tiles from ``held`` on, ``apart`` bytes from one
    block to the next: rows of sums from ``made`` on, ``line`` bytes apart."""
    block = 0
    while block + 4 <= blocks:
        _by_four(like, given, row, held + block * apart, apart, made + block * LINE, line, steps, 0)
        block += 4
    while block < blocks:
        _by_one(like, given, row, held + block * apart, apart, made + block * LINE, line, steps, 0)
        block += 1


@inner(**EXACT)
def _carry(total: int, part: int, dim: int, states: Floats, pair: int, best: np.float32, weight: np.float32) -> None:
    """The online softmax: ``part``, what one more segment gave relative to its largest score ``best``, is added to
    ``total``, which is relative to ``states[pair, 0]``; ``states[pair, 1]`` is the sum of the weights.

    ``total`` and ``part`` are addresses. Each operation is rounded by itself, so that it makes no difference where a
    segment is added.
    """
    most = max(states[pair, 0], best)
    old, new = exp(states[pair, 0] - most), exp(best - most)
    states[pair, 0], states[pair, 1] = most, states[pair, 1] * old + weight * new
    rescale(total, old, part, new, dim)


@inner(**INNER)
def _begin(totals: Floats, states: Floats, count: int) -> None:
    for pair in range(count):
        states[pair, 0], states[pair, 1] = -np.inf, 0
        for i in range(totals.shape[1]):
            totals[pair, i] = 0


@inner(**INNER)
def _end(totals: Floats, states: Floats, t: int, size: int, heads: int, folded: int, mixed: Any) -> None:
    """The answers of a group's rows."""
    dim = totals.shape[1]
    for pair in range(size * heads):
        of, place = pair // (size * folded), pair % (size * folded)
        head = of * folded + place % folded
        total, answer = totals[pair], mixed[t + place // folded, head * dim : (head + 1) * dim]
        factor = np.float32(1) / states[pair, 1]
        for i in range(dim):
            answer[i] = narrow(total[i] * factor, answer[i])


@inner(**INNER)
def _attend_part(
    queries: Floats, paged: PagedTokens, kv: Any, block: int, heads: int, scaling: float, window: int,
    groups: Indices, packed: PackedKeys, part_sums: Floats, part_best: Floats, part_weight: Floats, mixed: Any,
    parts: int, part: int,
) -> None:  # fmt: skip
    """The ``part``-th of ``parts`` parts of all segments that ``groups`` see, group by group.

    A group's pairs of a row and a head lie by key-value head, row and head within it. What a group gives that is done
    here as a whole goes to ``mixed``, otherwise what each segment gives to ``part_sums``,
    ``part_best`` and ``part_weight``.
    """
    kv_heads, dim = kv.shape[2], kv.shape[3]
    total, all_keys, all_values = _segments(groups), packed.keys[part], packed.values[part]
    begin_at, end_at = part * total // parts, (part + 1) * total // parts
    kept, folded = all_keys.shape[0], heads // kv_heads
    chunks = (TOGETHER * folded + ROWS - 1) // ROWS
    asked, weights = aligned((kv_heads * chunks, ROWS, dim), kv), aligned((ROWS, SEGMENT), kv)
    scores, made = aligned((ROWS, SEGMENT), queries), aligned((ROWS, dim), queries)
    totals, states = aligned((TOGETHER * heads, dim), queries), np.empty((TOGETHER * heads, 2), np.float32)
    best, weight = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    nothing, factor = np.zeros(ROWS, np.int16), np.float32(scaling)
    # Views of arrays are counted, which would take longer than what is done with them.
    asked_at, scores_at, weights_at = address(asked), address(scores), address(weights)
    values_at, totals_at = address(made), address(totals)
    keys_at, held_at = address(all_keys), address(all_values)
    # What is packed at each place: a sequence's segment, its tokens before ``known``.
    tables, numbers, known = np.full(kept, -1), np.empty(kept, np.int64), np.empty(kept, np.int64)
    configured = 0
    for group in range(groups.shape[0]):
        t, size, lowest, highest, before, shared = groups[group]
        first, last = max(lowest, lowest + begin_at - before), min(highest, lowest + end_at - before)
        if first >= last:
            continue
        pairs, table = size * folded, paged.table_rows[t]
        for of in range(kv_heads):
            for pair in range(pairs):
                row, head = t + pair // folded, of * folded + pair % folded
                query, own_query = queries[row, head * dim : (head + 1) * dim], asked[of * chunks + pair // ROWS]
                for i in range(dim):
                    own_query[pair % ROWS, i] = narrow(query[i], own_query[pair % ROWS, i])
        if shared < 0:
            _begin(totals, states, size * heads)
        position = paged.positions[t + size - 1]
        for number in range(first, last):
            place, begin = number % kept, number * SEGMENT
            keys, values = all_keys[place], all_values[place]
            if tables[place] != table or numbers[place] != number:
                tables[place], numbers[place], known[place] = table, number, begin
            stop = min(position + 1, begin + SEGMENT)
            alone = position < begin + SEGMENT and not _in_place(paged, t + size - 1, block)
            own = stop - 1 if alone else stop
            if known[place] < own:
                pack(paged.block_table[table], kv, block, begin, known[place], own, keys, values, address(nothing))
                known[place] = own
            if alone:
                # A candidate's own key is none of the sequence: the next row packs that place anew.
                if (own - begin) % STEP == 0:
                    clear(values, (own - begin) // 2, (own - begin) // 2 + ROWS)
                pack_own(kv, paged.slot_mapping[t], own - begin, keys, values)
                known[place] = min(known[place], own)
            end, blocks = (stop - begin + STEP - 1) // STEP * STEP, (stop - begin + ROWS - 1) // ROWS
            for of in range(kv_heads):
                for chunk in range(0, pairs, ROWS):
                    count = min(ROWS, pairs - chunk)
                    if count != configured:
                        configure(CONFIGS, count)
                        configured = count
                    # Scores = Q K^T of up to ROWS (row, head) pairs that share a key head with the whole segment.
                    given = asked_at + (of * chunks + chunk // ROWS) * asked.strides[0]
                    held = keys_at + place * all_keys.strides[0] + of * all_keys.strides[1]
                    apart, line = all_keys.strides[2], scores.strides[0]
                    _product(asked, given, asked.strides[1], held, apart, dim // STEP, blocks, scores_at, line)
                    for q in range(count):
                        # The causal mask, and the sliding window: this row sees the tokens low to high of the segment.
                        at = paged.positions[t + (chunk + q) // folded]
                        seen = first_seen(at, window)
                        low, high = max(np.int64(0), seen - begin), min(at + 1 - begin, SEGMENT)
                        if low < high:
                            start = scores_at + q * scores.strides[0]
                            best[q] = largest(start, low, high, end) * factor
                            made_at = weights_at + q * weights.strides[0]
                            weight[q] = soften(start, low, high, end, factor, best[q], made_at)
                        else:
                            weights[q, :end], weight[q] = 0, _UNSEEN
                    # Sums = P V, relative to the segment's largest scores.
                    held = held_at + place * all_values.strides[0] + of * all_values.strides[1]
                    apart, row, line = all_values.strides[2], weights.strides[0], made.strides[0]
                    _product(weights, weights_at, row, held, apart, end // STEP, dim // ROWS, values_at, line)
                    for q in range(count):
                        pair = of * pairs + chunk + q
                        if shared < 0:
                            if weight[q] != _UNSEEN:
                                total, given = totals_at + pair * totals.strides[0], values_at + q * made.strides[0]
                                _carry(total, given, dim, states, pair, best[q], weight[q])
                        else:
                            at = shared + (number - lowest) * size * heads + pair
                            part_best[at], part_weight[at] = best[q], weight[q]
                            for i in range(dim):
                                part_sums[at, i] = made[q, i]
        if shared < 0:
            _end(totals, states, t, size, heads, folded, mixed)
    release()


@inner(**INNER)
def _join(
    groups: Indices, heads: int, folded: int, part_sums: Floats, part_best: Floats, part_weight: Floats, mixed: Any
) -> None:
    """The answers of the groups that several threads shared, of their segments in order."""
    dim = part_sums.shape[1]
    totals = np.empty((TOGETHER * heads, dim), np.float32)
    states = np.empty((TOGETHER * heads, 2), np.float32)
    for group in range(groups.shape[0]):
        t, size, lowest, highest, _, at = groups[group]
        if at >= 0:
            _begin(totals, states, size * heads)
            for _ in range(lowest, highest):
                for pair in range(size * heads):
                    # A window may begin behind a whole segment of the group: it adds nothing to this row.
                    if part_weight[at] != _UNSEEN:
                        total = address(totals) + pair * totals.strides[0]
                        given = address(part_sums) + at * part_sums.strides[0]
                        _carry(total, given, dim, states, pair, part_best[at], part_weight[at])
                    at += 1
            _end(totals, states, t, size, heads, folded, mixed)


_attend_beside = in_parts(_attend_part)


@inner(**INNER)
def attend_by_matrices(
    queries: Floats,
    paged: PagedTokens,
    kv: Any,
    packed: PackedKeys,
    block: int,
    heads: int,
    scaling: float,
    window: int,
    mixed: Any,
    threads: int,
) -> None:
    """What ``vector_attention.attend_by_vectors`` computes, for a pool of bfloat16 whose heads are whole steps and
    whose blocks are whole tiles; queries and weights are rounded to bfloat16. ``packed``: ``room_for_keys`` of the
    step."""
    dim = kv.shape[3]
    groups, apart = _groups(paged, window, block, threads, heads)
    sums, best = np.empty((apart, dim), np.float32), np.empty(apart, np.float32)
    weight = np.empty(apart, np.float32)
    shared = (
        queries, paged, kv, block, heads, scaling, window, groups, packed, sums, best, weight, mixed, threads
    )  # fmt: skip
    _attend_beside(shared, threads)
    _join(groups, heads, heads // kv.shape[2], sums, best, weight, mixed)
