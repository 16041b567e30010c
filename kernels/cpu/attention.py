"""Attention of single queries over the blocks of a KV pool on a CPU, where they lie: nothing is gathered or copied."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from ladle.kernels.cpu.compiler import OUTER
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import narrow, widen
from ladle.kernels.cpu.types import Floats, LayerRows


@njit(parallel=True, **OUTER)
def attend(
    queries: Floats,
    rows: LayerRows,
    kv: Any,
    block: int,
    heads: int,
    scaling: float,
    window: int,
    mixed: Any,
    threads: int,
) -> None:
    """Softmax attention of every row and head over the tokens before the row's position and itself.

    ``queries`` [rows, at least heads * d], turned already; ``mixed`` [rows, heads * d] takes the answers. A query head
    reads the key/value head ``head // (heads // kv heads)``.
    """
    kv_heads, dim = kv.shape[2], kv.shape[3]
    folded = heads // kv_heads
    tokens = queries.shape[0]
    longest = 1
    for t in range(tokens):
        longest = max(longest, rows.positions[t] + 1)
    scores = np.empty((threads, longest), np.float32)
    sums = np.empty((threads, dim), np.float32)
    for part in prange(threads):
        for task in range(part * tokens * heads // threads, (part + 1) * tokens * heads // threads):
            t, head = task // heads, task % heads
            of = head // folded
            position = rows.positions[t]
            first = max(0, position - window + 1) if window > 0 else 0
            query, answer = queries[t, head * dim : (head + 1) * dim], mixed[t, head * dim : (head + 1) * dim]
            own, sum_ = scores[part], sums[part]
            best = np.float32(-np.inf)
            for number in range(first // block, position // block + 1):
                # The row's own key lies at its slot, which for a candidate is not where its position is.
                from_slot = rows.blocks[rows.tables[t], number] * block
                for p in range(max(first, number * block), min(position + 1, (number + 1) * block)):
                    slot = rows.slots[t] if p == position else from_slot + p - number * block
                    key = kv[slot, 0, of]
                    score = np.float32(0)
                    for i in range(dim):
                        score += query[i] * widen(key[i])
                    score *= np.float32(scaling)
                    own[p] = score
                    best = max(best, score)
            total = np.float32(0)
            seen = own[first : position + 1]
            for i in range(seen.shape[0]):
                weight = exp(seen[i] - best)
                seen[i] = weight
                total += weight
            for i in range(dim):
                sum_[i] = 0
            for number in range(first // block, position // block + 1):
                from_slot = rows.blocks[rows.tables[t], number] * block
                for p in range(max(first, number * block), min(position + 1, (number + 1) * block)):
                    slot = rows.slots[t] if p == position else from_slot + p - number * block
                    weight = own[p] / total
                    value = kv[slot, 1, of]
                    for i in range(dim):
                        sum_[i] += weight * widen(value[i])
            for i in range(dim):
                answer[i] = narrow(sum_[i], answer[i])
