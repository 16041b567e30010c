"""Attention over the blocks of a KV pool in vectors of float32, one query after the other: nothing is gathered."""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.arrays import Floats, Indices, PagedTokens
from ladle.kernels.cpu.attention.key_loops import add_values, dot_keys
from ladle.kernels.cpu.attention.segments import SEGMENT, first_seen, first_segments, join_segments
from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import widen
from ladle.kernels.cpu.tiles import LANES

_MOST_FOLDED = 2
"""Query heads that read keys and values together. With more of them it would take longer to compile."""


def _heads(folded: int) -> Any:
    """The loops over keys and values for ``folded`` query heads."""
    dot, add = dot_keys(folded), add_values(folded)

    @inner(**INNER)
    def scores(query: Floats, held: Floats, of: int, count: int, seen: Floats) -> None:
        dot(query, held, 0, of, count, seen, 0)

    @inner(**INNER)
    def sums(seen: Floats, held: Floats, of: int, count: int, total: Floats) -> None:
        add(seen, 0, held, 0, of, count, total)

    return scores, sums


(_dot1, _add1), (_dot2, _add2) = (_heads(n) for n in range(1, _MOST_FOLDED + 1))


def _over_heads(one: Any, two: Any) -> Any:
    """The loop ``one`` or ``two`` over the tokens of ``held``, for all query heads, each with its key-value head."""

    @inner(**INNER)
    def over(given: Floats, held: Floats, count: int, folded: int, made: Floats) -> None:
        for of in range(held.shape[2]):
            head, last = of * folded, (of + 1) * folded
            while head < last:
                if last - head >= _MOST_FOLDED:
                    two(given[head:last], held, of, count, made[head:last])
                else:
                    one(given[head:last], held, of, count, made[head:last])
                head += _MOST_FOLDED

    return over


_dot = _over_heads(_dot1, _dot2)
"""_dot(query, held, count, folded, seen): seen[h, i] = query[h] . key i, for every query head h and i < ``count``."""
_add = _over_heads(_add1, _add2)
"""_add(seen, held, count, folded, sums): sums[h] += sum_i seen[h, i] value i, for every h and i < ``count``."""


@inner(**INNER)
def _widened(kv: Any, wide: Floats) -> None:
    """``kv`` [n, 2, heads, d] as float32; ``wide`` has room for whole vectors of d, the rest of them zeros."""
    dim = kv.shape[3]
    if dim == wide.shape[3]:
        # Heads fill whole vectors: one run over contiguous memory, which the compiler vectorises.
        flat, made = kv.reshape(-1), wide.reshape(-1)
        for i in range(made.shape[0]):
            made[i] = widen(flat[i])
        return
    for n in range(kv.shape[0]):
        for which in range(2):
            for head in range(kv.shape[2]):
                for i in range(wide.shape[3]):
                    wide[n, which, head, i] = widen(kv[n, which, head, i]) if i < dim else np.float32(0)


@inner(**INNER)
def _hold(paged: PagedTokens, t: int, kv: Any, block: int, start: int, known: int, stop: int, held: Floats) -> None:
    """The keys and values of the tokens ``known`` to ``stop`` that row ``t`` sees into ``held``, whose first token is
    ``start``.

    Blocks are read from end to end: keys of one head lie too far apart for the processor to foresee the next one, and
    read from the pool one by one they come at a fraction of the memory's pace.
    """
    position, table = paged.positions[t], paged.block_table[paged.table_rows[t]]
    before = min(stop, position)
    for number in range(known // block, (before + block - 1) // block):
        begin, end = max(known, number * block), min(before, (number + 1) * block)
        # Added to the place of a token in its sequence, this gives its slot in the pool.
        slot = (table[number] - number) * block
        _widened(kv[slot + begin : slot + end], held[begin - start : end - start])
    if position < stop:
        # The row's own key lies at its slot, which for a candidate is not where its position is.
        slot = paged.slot_mapping[t]
        _widened(kv[slot : slot + 1], held[position - start : position - start + 1])


@inner(**INNER)
def _segment(
    query: Floats,
    held: Floats,
    count: int,
    folded: int,
    scaling: float,
    seen: Floats,
    sums: Floats,
    best: Floats,
    weight: Floats,
) -> None:
    """What the heads of a row see of the first ``count`` tokens of ``held``: their weighted values ``sums`` [heads, d],
    relative to the largest score ``best`` [heads], and the sum of the weights ``weight`` [heads]."""
    _dot(query, held, count, folded, seen)
    for h in range(query.shape[0]):
        own, total = seen[h, :count], sums[h]
        # Softmax within the segment, shifted by the segment's own maximum; ``_joined`` puts the segments on one scale.
        most = np.float32(-np.inf)
        for i in range(own.shape[0]):
            own[i] *= np.float32(scaling)
            most = max(most, own[i])
        together = np.float32(0)
        for i in range(own.shape[0]):
            own[i] = exp(own[i] - most)
            together += own[i]
        best[h], weight[h] = most, together
        for i in range(total.shape[0]):
            total[i] = 0
    _add(seen, held, count, folded, sums)


@inner(**INNER)
def _tasks(paged: PagedTokens, window: int, firsts: Indices) -> Indices:
    """[tasks, 4] row, first token, last token, place of the result: every segment of every row.

    Rows of one sequence that follow each other take a segment in turns, so that it is read once for all of them.
    ``firsts``: see ``first_segments``.
    """
    tokens = paged.positions.shape[0]
    tasks = np.empty((firsts[tokens], 4), np.int64)
    made, t = 0, 0
    while t < tokens:
        # Rows t to end belong to one sequence: a prefill chunk, or the candidates of a step.
        end, last = t + 1, paged.positions[t]
        while end < tokens and paged.table_rows[end] == paged.table_rows[t]:
            last = max(last, paged.positions[end])
            end += 1
        # Segment outside, row inside: a segment's keys and values are held for all rows of the run.
        for number in range(last // SEGMENT + 1):
            for row in range(t, end):
                position = paged.positions[row]
                first = first_seen(position, window)
                start, stop = max(first, number * SEGMENT), min(position + 1, (number + 1) * SEGMENT)
                if start < stop:
                    tasks[made, 0], tasks[made, 1], tasks[made, 2] = row, start, stop
                    # Tasks are ordered by segment and results by row: this is where the row's part has its place.
                    tasks[made, 3] = firsts[row] + number - first // SEGMENT
                    made += 1
        t = end
    return tasks


@inner(**INNER)
def _attend_part(
    queries: Floats, paged: PagedTokens, kv: Any, block: int, folded: int, scaling: float, tasks: Indices,
    scores: Floats, asked: Floats, all_held: Floats, sums: Floats, best: Floats, weight: Floats, parts: int, part: int,
) -> None:  # fmt: skip
    """A contiguous run of ``tasks`` (split-KV), with partial sums of their own."""
    count, heads, dim = tasks.shape[0], sums.shape[1], kv.shape[3]
    query, held = asked[part], all_held[part]
    table, begin, known = -1, -1, -1  # what is held: tokens of a sequence from ``begin`` to ``known``
    for task in range(part * count // parts, (part + 1) * count // parts):
        t, start, stop, place = tasks[task]
        # Tasks of one segment follow each other with growing ends: what the row before has widened is read on from, and
        # only the tokens behind it come from the pool.
        if paged.table_rows[t] != table or start != begin or stop < known:
            table, begin, known = paged.table_rows[t], start, start
        _hold(paged, t, kv, block, start, known, stop, held)
        position = paged.positions[t]
        # A candidate's own key is held at its position but is not part of the sequence: the next row reads that
        # place anew.
        at = paged.block_table[table, position // block] * block + position % block
        known = stop if position >= stop or paged.slot_mapping[t] == at else position
        for head in range(heads):
            for i in range(dim):
                query[head, i] = queries[t, head * dim + i]
        _segment(query, held, stop - start, folded, scaling, scores[part], sums[place], best[place], weight[place])


_attend_beside = in_parts(_attend_part)


@inner(**INNER)
def attend_by_vectors(
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
    """Softmax attention of every row and head over the tokens before the row's position and itself.

    ``queries`` [rows, at least heads * d], turned already; ``kv`` [slots, 2, kv heads, d];
    ``mixed`` [rows, heads * d] takes the answers. A query head reads the key/value head ``head // (heads // kv
    heads)``. What a row computes depends on its own place alone.
    """
    kv_heads, dim = kv.shape[2], kv.shape[3]
    folded = heads // kv_heads
    firsts = first_segments(paged, window)
    tasks = _tasks(paged, window, firsts)
    count = tasks.shape[0]
    # Heads are padded to whole vectors with zeros, which add nothing to a dot product.
    wide = (dim + LANES - 1) // LANES * LANES
    sums = np.empty((count, heads, wide), np.float32)
    best = np.empty((count, heads), np.float32)
    weight = np.empty((count, heads), np.float32)
    scores = np.empty((threads, heads, SEGMENT + 16), np.float32)  # a cache line apart
    asked = np.zeros((threads, heads, wide), np.float32)
    held = np.empty((threads, SEGMENT, 2, kv_heads, wide), np.float32)
    shared = (queries, paged, kv, block, folded, scaling, tasks, scores, asked, held, sums, best, weight, threads)
    _attend_beside(shared, threads)
    join_segments(sums, best, weight, firsts, heads, mixed, threads)
