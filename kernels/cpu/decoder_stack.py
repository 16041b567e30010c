"""Decoder layers of Llama's shape for a few rows on a CPU, all of them as one compiled call.

Between the products of a small step lie some thirty calls per layer, each a few microseconds of dispatch for next to no
work; compiled together they vanish. The layers merge in the forward as gated layers do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Floats, LayerPass, PagedTokens, Product, Shrunk
from ladle.kernels.cpu.attention.matrix_attention import attend_by_matrices, can_attend
from ladle.kernels.cpu.attention.packed_keys import room_for_keys
from ladle.kernels.cpu.attention.vector_attention import attend_by_vectors
from ladle.kernels.cpu.compiling.compiler import INNER, compiled, one_at_a_time
from ladle.kernels.cpu.compiling.inner_code import inner, late
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.digits import width_of
from ladle.kernels.cpu.elementary import exp
from ladle.kernels.cpu.intrinsics import narrow
from ladle.kernels.cpu.merged_product import ALONE, multiply_beside, room
from ladle.kernels.cpu.row_products import expand_rows, room_for_shrunk
from ladle.kernels.cpu.tiles import LANES


def run_layers(step: LayerPass) -> None:
    """All decoder layers on ``step.x``, in place. Raises nothing: what is not finite goes on into ``x``."""
    with one_at_a_time:
        if can_attend(step.kv, step.block):
            _run(step, None, True)
        else:
            _run(step, True, None)


@inner(inline="always", **INNER)
def _of(product: Product, layer: int) -> Product:
    """The product of one layer."""
    return Product(
        product.weight[layer],
        product.steps[layer],
        product.bias[layer],
        product.shrink[layer],
        product.expand[layer],
        product.tiles[layer],
    )


# Compiled for the product alone, too, perhaps in another process at this moment.
_multiply = late(multiply_beside)


@compiled()
def _run(step: LayerPass, by_vectors: bool | None, by_matrices: bool | None) -> None:
    """One of the last two is None: what attends in the other way is not compiled then, which takes seconds."""
    x, layers, scales, paged, kv, block, threads, amounts, vectors = step
    tokens, hidden = x.shape
    dim = paged.cos.shape[1]
    attended = layers.attended
    inner = layers.gate_up.expand.shape[2] // 2
    # The activations of one layer, which all layers write into in turn. Products come out in float32.
    normed = aligned((tokens, hidden), layers.inputs)
    mixed = aligned((tokens, attended), layers.inputs)
    gated = aligned((tokens, inner), layers.inputs)
    qkv = aligned((tokens, layers.qkv.weight.shape[1] * LANES), x)
    out = aligned((tokens, layers.out.weight.shape[1] * LANES), x)
    both = aligned((tokens, layers.gate_up.weight.shape[1] * LANES), x)
    down = aligned((tokens, layers.down.weight.shape[1] * LANES), x)
    width = max(width_of(layers.qkv.weight), width_of(layers.out.weight))
    width = max(width, width_of(layers.gate_up.weight), width_of(layers.down.weight))
    weights = (layers.qkv.weight, layers.out.weight, layers.gate_up.weight, layers.down.weight)
    digits = room((weights, tokens, width))
    # One buffer for the rank sums of all four products: each product is expanded before the next one shrinks.
    ranks = 0
    for scale in scales:
        ranks = max(ranks, scale.shape[2])
    in_tiles = layers.qkv.tiles.shape[1] + layers.out.tiles.shape[1] + layers.gate_up.tiles.shape[1] > 0
    shrunk = room_for_shrunk(tokens, ranks, in_tiles or layers.down.tiles.shape[1] > 0)

    if by_matrices is not None:
        packed = room_for_keys(paged, kv[0], threads)
    for layer in range(layers.norms.shape[0]):
        # LoRA coefficients [rows, R] of the four products: one table for all layers where their rank columns agree.
        first = scales[0][layer if scales[0].shape[0] > 1 else 0]
        second = scales[1][layer if scales[1].shape[0] > 1 else 0]
        third = scales[2][layer if scales[2].shape[0] > 1 else 0]
        fourth = scales[3][layer if scales[3].shape[0] > 1 else 0]
        qkv_product, out_product = _of(layers.qkv, layer), _of(layers.out, layer)
        gate_up_product, down_product = _of(layers.gate_up, layer), _of(layers.down, layer)
        norms = layers.norms[layer]
        # Later layers get their input norm at the end of the layer before.
        if layer == 0:
            _normalise(x, norms[0], layers.eps, normed, threads)
        # Attention block: W x and A x in one pass, then B (c * A x), rotary embedding and the write to the KV pool.
        _multiply((qkv_product, first, normed, digits, qkv, shrunk, threads))
        _store(qkv_product, first.shape[1], qkv, shrunk, paged, kv[layer], attended // dim, threads)
        heads, window = attended // dim, layers.windows[layer]
        if by_vectors is not None:
            attend_by_vectors(qkv, paged, kv[layer], block, heads, layers.scaling, window, mixed, threads)
        if by_matrices is not None:
            attend_by_matrices(qkv, paged, kv[layer], packed, block, heads, layers.scaling, window, mixed, threads)
        _multiply((out_product, second, mixed, digits, out, shrunk, threads))
        _add(out_product, second.shape[1], out, shrunk, x, threads)
        _normalise(x, norms[1], layers.eps, normed, threads)
        # SwiGLU block; the expand products ride on the activation and on the residual sum.
        _multiply((gate_up_product, third, normed, digits, both, shrunk, threads))
        _activate(gate_up_product, third.shape[1], both, shrunk, gated, threads)
        _multiply((down_product, fourth, gated, digits, down, shrunk, threads))
        _add(down_product, fourth.shape[1], down, shrunk, x, threads)
        if amounts.shape[1] > 0:
            _steer(amounts, vectors[layer], x, threads)
        if layer + 1 < layers.norms.shape[0]:
            _normalise(x, layers.norms[layer + 1, 0], layers.eps, normed, threads)


@inner(**INNER)
def _normalise_rows(x: Floats, weight: Floats, eps: float, y: Any, first: int, last: int) -> None:
    for t in range(first, last):
        row, made = x[t], y[t]
        total = np.float32(0)
        for i in range(row.shape[0]):
            total += row[i] * row[i]
        # RMSNorm: x / sqrt(mean(x^2) + eps) * weight, in float32.
        factor = np.float32(1.0 / math.sqrt(total / row.shape[0] + eps))
        for i in range(row.shape[0]):
            made[i] = narrow(row[i] * factor * weight[i], made[i])


@inner(**INNER)
def _normalise_part(x: Floats, weight: Floats, eps: float, y: Any, parts: int, part: int) -> None:
    _normalise_rows(x, weight, eps, y, part * x.shape[0] // parts, (part + 1) * x.shape[0] // parts)


_normalise_beside = in_parts(_normalise_part)


@inner(**INNER)
def _normalise(x: Floats, weight: Floats, eps: float, y: Any, threads: int) -> None:
    if x.shape[0] <= ALONE:
        _normalise_rows(x, weight, eps, y, 0, x.shape[0])
    else:
        _normalise_beside((x, weight, eps, y, threads), threads)


@inner(**INNER)
def _add_rows(product: Product, ranks: int, y: Floats, shrunk: Shrunk, x: Floats, first: int, last: int) -> None:
    size = x.shape[1]
    # LoRA up-projection onto the product, then the residual sum, while both rows are in the cache.
    expand_rows(product, ranks, shrunk, y, first, last, 0, size)
    for t in range(first, last):
        own, added = x[t], y[t, :size]
        for i in range(size):
            own[i] += added[i]


@inner(**INNER)
def _add_part(product: Product, ranks: int, y: Floats, shrunk: Shrunk, x: Floats, parts: int, part: int) -> None:
    _add_rows(product, ranks, y, shrunk, x, part * x.shape[0] // parts, (part + 1) * x.shape[0] // parts)


_add_beside = in_parts(_add_part)


@inner(**INNER)
def _add(product: Product, ranks: int, y: Floats, shrunk: Shrunk, x: Floats, threads: int) -> None:
    """x += y, expanded."""
    if x.shape[0] <= ALONE:
        _add_rows(product, ranks, y, shrunk, x, 0, x.shape[0])
    else:
        _add_beside((product, ranks, y, shrunk, x, threads), threads)


@inner(**INNER)
def _steer_rows(amounts: Floats, vectors: Floats, x: Floats, first: int, last: int) -> None:
    for t in range(first, last):
        own = x[t]
        for j in range(amounts.shape[1]):
            amount, vector = amounts[t, j], vectors[j]
            if amount != 0:
                for i in range(own.shape[0]):
                    own[i] += amount * vector[i]


@inner(**INNER)
def _steer_part(amounts: Floats, vectors: Floats, x: Floats, parts: int, part: int) -> None:
    _steer_rows(amounts, vectors, x, part * x.shape[0] // parts, (part + 1) * x.shape[0] // parts)


_steer_beside = in_parts(_steer_part)


@inner(**INNER)
def _steer(amounts: Floats, vectors: Floats, x: Floats, threads: int) -> None:
    """x += amounts vectors, vector after vector."""
    if x.shape[0] <= ALONE:
        _steer_rows(amounts, vectors, x, 0, x.shape[0])
    else:
        _steer_beside((amounts, vectors, x, threads), threads)


@inner(**INNER)
def _store_part(
    product: Product, ranks: int, qkv: Floats, shrunk: Shrunk, paged: PagedTokens, kv: Any, heads: int, parts: int,
    part: int,
) -> None:  # fmt: skip
    tokens, kv_heads, dim = qkv.shape[0], kv.shape[2], kv.shape[3]
    half, all_heads = dim // 2, heads + 2 * kv_heads
    # A part has some rows, or of fewer rows than parts some heads: their slices of q, k or v.
    by_heads, in_blocks = tokens < parts, dim % LANES == 0
    top, bottom = (0, tokens) if by_heads else (part * tokens // parts, (part + 1) * tokens // parts)
    first, last = (part * all_heads // parts, (part + 1) * all_heads // parts) if by_heads else (0, all_heads)
    if in_blocks or not by_heads:
        expand_rows(product, ranks, shrunk, qkv, top, bottom, first * dim, last * dim)
    for t in range(top, bottom):
        for head in range(first, last):
            row = qkv[t, head * dim : (head + 1) * dim]
            if head < heads + kv_heads:
                # Rotary embedding in the rotate-half form; the sign of the first half is in ``sin``.
                for i in range(half):
                    one, other = row[i], row[half + i]
                    row[i] = one * paged.cos[t, i] + other * paged.sin[t, i]
                    row[half + i] = other * paged.cos[t, half + i] + one * paged.sin[t, half + i]
            if head >= heads:
                # Heads of q, k and v follow each other in a row; from ``heads`` on they are keys (0), then values (1).
                own = kv[paged.slot_mapping[t], (head - heads) // kv_heads, (head - heads) % kv_heads]
                for i in range(dim):
                    own[i] = narrow(row[i], own[i])


_store_beside = in_parts(_store_part)


@inner(**INNER)
def _store(
    product: Product, ranks: int, qkv: Floats, shrunk: Shrunk, paged: PagedTokens, kv: Any, heads: int, threads: int
) -> None:
    """Expand, turn queries and keys by their positions, write keys and values to the pool."""
    tokens, dim = qkv.shape[0], kv.shape[3]
    if tokens < threads and dim % LANES != 0:
        expand_rows(product, ranks, shrunk, qkv, 0, tokens, 0, (heads + 2 * kv.shape[2]) * dim)
    _store_beside((product, ranks, qkv, shrunk, paged, kv, heads, threads), threads)


@inner(**INNER)
def _activate_part(
    product: Product, ranks: int, both: Floats, shrunk: Shrunk, gated: Any, parts: int, part: int
) -> None:
    rows, size = gated.shape
    # Parts are whole blocks of outputs of gate and of the same outputs of up, which lie ``size`` columns behind. Where
    # the border between both falls inside a block, all of it was expanded before, by one thread.
    blocks = (size + LANES - 1) // LANES
    start, stop = part * blocks // parts * LANES, min((part + 1) * blocks // parts * LANES, size)
    if size % LANES == 0:
        expand_rows(product, ranks, shrunk, both, 0, rows, start, stop)
        expand_rows(product, ranks, shrunk, both, 0, rows, size + start, size + stop)
    for t in range(rows):
        gates, ups, made = both[t, start:stop], both[t, size + start : size + stop], gated[t, start:stop]
        for i in range(made.shape[0]):
            # silu(g) u, with silu(g) = g / (1 + e^-g).
            made[i] = narrow(gates[i] / (np.float32(1) + exp(-gates[i])) * ups[i], made[i])


_activate_beside = in_parts(_activate_part)


@inner(**INNER)
def _activate(product: Product, ranks: int, both: Floats, shrunk: Shrunk, gated: Any, threads: int) -> None:
    """gated = silu(gate) up, expanded first."""
    rows, size = gated.shape
    if size % LANES != 0:
        expand_rows(product, ranks, shrunk, both, 0, rows, 0, 2 * size)
    _activate_beside((product, ranks, both, shrunk, gated, threads), threads)
