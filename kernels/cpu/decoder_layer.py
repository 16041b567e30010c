"""A decoder layer of Llama's shape for a few rows on a CPU, as one compiled call.

Between the products of a small step lie some thirty calls a layer, each a few microseconds of dispatch for next to no
work; compiled together they vanish. The layer merges in the forward as gated layers do: the bank's shrink products are
extra rows of a weight, and what they give, times the coefficients, is expanded onto the base's outputs.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from ladle.kernels.cpu.compiler import OUTER, one_at_a_time
from ladle.kernels.cpu.half_dots import add_expanded, dots, exp
from ladle.kernels.cpu.types import Floats, Layer, LayerRows, Product


def run_layer(
    x: Floats,
    layer: Layer,
    scales: tuple[Floats, Floats, Floats, Floats],
    rows: LayerRows,
    kv: Floats,
    block: int,
    threads: int,
) -> None:
    """One decoder layer on ``x`` [rows, hidden] float32, in place.

    Args:
        scales: [rows, R] coefficient of each rank column of the four products; [rows, 0] for the plain base.
        kv: the pool of this layer [slots, 2, kv heads, d] float32; a row sees the tokens before its position through
            its blocks, and itself at its slot. New keys and values are written before any row attends.
        block: slots a block.
        threads: how many parts the work is cut into.

    Raises nothing: what is not finite goes on into ``x``.
    """
    with one_at_a_time:
        _layer(x, layer, scales, rows, kv, block, threads)


@njit(**OUTER)
def _layer(
    x: Floats,
    layer: Layer,
    scales: tuple[Floats, Floats, Floats, Floats],
    rows: LayerRows,
    kv: Floats,
    block: int,
    threads: int,
) -> None:
    tokens, hidden = x.shape
    dim = rows.cos.shape[1]
    attended = layer.out.weight.shape[1]
    inner_size = layer.down.weight.shape[1]
    normed = np.empty((tokens, hidden), np.float32)
    mixed = np.empty((tokens, attended), np.float32)
    gated = np.empty((tokens, inner_size), np.float32)
    qkv = np.empty((tokens, layer.qkv.weight.shape[0]), np.float32)
    out = np.empty((tokens, layer.out.weight.shape[0]), np.float32)
    both = np.empty((tokens, layer.gate_up.weight.shape[0]), np.float32)
    down = np.empty((tokens, layer.down.weight.shape[0]), np.float32)

    _normalise(x, layer.norms[0], layer.eps, normed)
    _multiply(layer.qkv, scales[0], normed, qkv, threads)
    _store(layer.qkv, scales[0], qkv, rows, kv, attended // dim, threads)
    _attend(qkv, rows, kv, block, attended // dim, layer.scaling, layer.window, mixed, threads)
    _multiply(layer.out, scales[1], mixed, out, threads)
    _add(layer.out, scales[1], out, x)
    _normalise(x, layer.norms[1], layer.eps, normed)
    _multiply(layer.gate_up, scales[2], normed, both, threads)
    _activate(layer.gate_up, scales[2], both, gated, threads)
    _multiply(layer.down, scales[3], gated, down, threads)
    _add(layer.down, scales[3], down, x)


@njit(**OUTER)
def _normalise(x: Floats, weight: Floats, eps: float, y: Floats) -> None:
    for t in range(x.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[t, i] * x[t, i]
        factor = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
        for i in range(x.shape[1]):
            y[t, i] = x[t, i] * factor * weight[i]


@njit(parallel=True, **OUTER)
def _multiply(product: Product, scale: Floats, x: Floats, y: Floats, threads: int) -> None:
    """y = x weight^T + bias; of the shrink products as many as ``scale`` has, times it."""
    rows = x.shape[0]
    total, ranks = product.expand.shape[1], scale.shape[1]
    used = np.zeros(ranks, np.bool_)  # what no row asks for is not read
    for t in range(rows):
        for r in range(ranks):
            used[r] |= scale[t, r] != 0
    for part in prange(threads):
        start, stop = part * total // threads, (part + 1) * total // threads
        dots(product.weight, x, y, start, stop)
        for j in range(start, min(stop, product.bias.shape[0])):
            for t in range(rows):
                y[t, j] += product.bias[j]
        first, last = part * ranks // threads, (part + 1) * ranks // threads
        while first < last:
            end = first
            while end < last and used[end]:
                end += 1
            dots(product.weight, x, y, total + first, total + end)
            for t in range(rows):
                for r in range(first, min(end + 1, last)):
                    y[t, total + r] = y[t, total + r] * scale[t, r] if used[r] else 0
            first = end + 1


@njit(parallel=True, **OUTER)
def _store(product: Product, scale: Floats, qkv: Floats, rows: LayerRows, kv: Floats, heads: int, threads: int) -> None:
    """Expand, turn queries and keys by their positions, write keys and values to the pool."""
    kv_heads, dim = kv.shape[2], kv.shape[3]
    half = dim // 2
    tasks = qkv.shape[0] * (heads + 2 * kv_heads)
    for part in prange(threads):
        for task in range(part * tasks // threads, (part + 1) * tasks // threads):
            t, head = task // (heads + 2 * kv_heads), task % (heads + 2 * kv_heads)
            start = head * dim
            add_expanded(product.expand, scale.shape[1], qkv, t, qkv, product.expand.shape[1], start, start + dim)
            row = qkv[t, start : start + dim]
            if head < heads + kv_heads:
                for i in range(half):
                    low, high = row[i], row[half + i]
                    row[i] = low * rows.cos[t, i] + high * rows.sin[t, i]
                    row[half + i] = high * rows.cos[t, half + i] + low * rows.sin[t, half + i]
            if head >= heads:
                own = kv[rows.slots[t], (head - heads) // kv_heads, (head - heads) % kv_heads]
                for i in range(dim):
                    own[i] = row[i]


@njit(parallel=True, **OUTER)
def _attend(
    qkv: Floats,
    rows: LayerRows,
    kv: Floats,
    block: int,
    heads: int,
    scaling: float,
    window: int,
    mixed: Floats,
    threads: int,
) -> None:
    """Softmax attention of every row and head over the tokens before the row's position and itself."""
    kv_heads, dim = kv.shape[2], kv.shape[3]
    folded = heads // kv_heads
    tokens = qkv.shape[0]
    longest = 1
    for t in range(tokens):
        longest = max(longest, rows.positions[t] + 1)
    scores = np.empty((threads, longest), np.float32)
    for part in prange(threads):
        for task in range(part * tokens * heads // threads, (part + 1) * tokens * heads // threads):
            t, head = task // heads, task % heads
            of = head // folded
            position = rows.positions[t]
            first = max(0, position - window + 1) if window > 0 else 0
            query, answer = qkv[t, head * dim : (head + 1) * dim], mixed[t, head * dim : (head + 1) * dim]
            own = scores[part]
            best = np.float32(-np.inf)
            for number in range(first // block, position // block + 1):
                # The row's own key lies at its slot, which for a candidate is not where its position is.
                from_slot = rows.blocks[rows.tables[t], number] * block
                for p in range(max(first, number * block), min(position + 1, (number + 1) * block)):
                    slot = rows.slots[t] if p == position else from_slot + p - number * block
                    score = np.float32(0)
                    for i in range(dim):
                        score += query[i] * kv[slot, 0, of, i]
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
                answer[i] = 0
            for number in range(first // block, position // block + 1):
                from_slot = rows.blocks[rows.tables[t], number] * block
                for p in range(max(first, number * block), min(position + 1, (number + 1) * block)):
                    slot = rows.slots[t] if p == position else from_slot + p - number * block
                    weight = own[p] / total
                    for i in range(dim):
                        answer[i] += weight * kv[slot, 1, of, i]


@njit(**OUTER)
def _add(product: Product, scale: Floats, y: Floats, x: Floats) -> None:
    """x += y, expanded."""
    total = product.expand.shape[1]
    for t in range(x.shape[0]):
        add_expanded(product.expand, scale.shape[1], y, t, y, total, 0, total)
        for j in range(total):
            x[t, j] += y[t, j]


@njit(parallel=True, **OUTER)
def _activate(product: Product, scale: Floats, both: Floats, gated: Floats, threads: int) -> None:
    """gated = silu(gate) up, expanded first."""
    size = gated.shape[1]
    total = product.expand.shape[1]
    for part in prange(threads):
        start, stop = part * size // threads, (part + 1) * size // threads
        for t in range(both.shape[0]):
            add_expanded(product.expand, scale.shape[1], both, t, both, total, start, stop)
            add_expanded(product.expand, scale.shape[1], both, t, both, total, size + start, size + stop)
            gates, ups, answer = both[t, start:stop], both[t, size + start : size + stop], gated[t, start:stop]
            for i in range(answer.shape[0]):
                answer[i] = gates[i] / (np.float32(1) + exp(-gates[i])) * ups[i]
