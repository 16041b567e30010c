"""A product with packed weights and what a bank adds to it, compiled for the processor at hand: arrays in, arrays out.

``tiled_product`` has the layers that are made of it.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ladle.kernels.cpu.arrays import Digits, Floats, Product, Shrunk
from ladle.kernels.cpu.compiling.compiler import INNER, compiled
from ladle.kernels.cpu.compiling.inner_code import either, inner
from ladle.kernels.cpu.compiling.parts import in_parts
from ladle.kernels.cpu.digits import cut_rows, in_digits, multiply_digits, room_for_digits, width_of
from ladle.kernels.cpu.intrinsics import narrow
from ladle.kernels.cpu.row_products import expand_rows, multiply, room_for_shrunk, shrink_rows
from ladle.kernels.cpu.tiles import LANES

_CUT_ALONE = 1 << 15
"""Numbers up to which cutting them into digits takes less time than waking a second thread."""
ALONE = 4
"""Rows up to which what is done row by row is not worth waking a second thread."""


def _are_digits(weight: Any, *others: Any) -> bool:
    return bool(weight.dtype == types.uint8)


@inner(**INNER)
def _in_whole_numbers(weight: Any, steps: Floats, x: Any, digits: Digits, y: Floats, first: int, last: int) -> None:
    multiply_digits(weight, steps, digits, y, first, last)


@inner(**INNER)
def _in_floats(weight: Any, steps: Floats, x: Any, digits: None, y: Floats, first: int, last: int) -> None:
    multiply(weight, x, y, first, last)


_multiply = either(_are_digits, _in_whole_numbers, _in_floats)


@inner(**INNER)
def multiply_part(
    product: Product, scale: Floats, x: Any, digits: Digits, y: Floats, shrunk: Shrunk, parts: int, part: int
) -> None:
    """The ``part``-th of ``parts`` parts of a product: y = x weight^T + bias, and shrunk = scale * (x shrink^T).

    ``scale`` [rows, R or fewer]; ``digits``: of ``x``, where the weights are multiplied so; ``y`` [rows, outputs in
    whole blocks]; what lies beyond the outputs and the used ranks is undefined.
    """
    # Parts are runs of whole blocks of sixteen outputs: no sum is divided among threads.
    blocks = product.weight.shape[0]
    first, last = part * blocks // parts, (part + 1) * blocks // parts
    # W x first: it reads the most memory, and the part's outputs are in the cache for what follows.
    _multiply((product.weight, product.steps, x, digits, y, first, last))
    rows = x.shape[0]
    start, stop = first * LANES, min(last * LANES, product.expand.shape[1])
    # Epilogue of this part's outputs: dequantise int8 per output channel, then the bias.
    if product.steps.shape[0] > 0 and start < stop and not in_digits(product.weight):
        steps = product.steps[start:stop]
        for t in range(rows):
            own = y[t, start:stop]
            for i in range(own.shape[0]):
                own[i] *= steps[i]
    if product.bias.shape[0] > 0 and start < stop:
        bias = product.bias[start:stop]
        for t in range(rows):
            own = y[t, start:stop]
            for i in range(own.shape[0]):
                own[i] += bias[i]
    # The LoRA down-projection: rank blocks are dealt to the parts like the outputs, and idle ones are skipped.
    shrink_rows(product, scale, x, shrunk, part, parts)


@inner(**INNER)
def _cut_part(x: Any, width: int, digits: Digits, parts: int, part: int) -> None:
    cut_rows(x, width, digits, part * x.shape[0] // parts, (part + 1) * x.shape[0] // parts)


_cut_beside, _multiply_parts = in_parts(_cut_part), in_parts(multiply_part)


@inner(**INNER)
def _cut_all(weight: Any, x: Any, digits: Digits, threads: int) -> None:
    # Activations are cut into digits once per product, before its parts, which all read them.
    rows, width = x.shape[0], width_of(weight)
    if rows * width <= _CUT_ALONE:
        cut_rows(x, width, digits, 0, rows)
    else:
        _cut_beside((x, width, digits, threads), threads)


@inner(**INNER)
def _cut_none(weight: Any, x: Any, digits: None, threads: int) -> None:
    pass


_cut = either(_are_digits, _cut_all, _cut_none)


def _any_are_digits(weights: Any, *others: Any) -> bool:
    return any(_are_digits(weight) for weight in weights.types)


@inner(**INNER)
def _digits_of(weights: Any, rows: int, width: int) -> Digits:
    return room_for_digits(rows, width)


@inner(**INNER)
def _no_digits(weights: Any, rows: int, width: int) -> None:
    return None


room = either(_any_are_digits, _digits_of, _no_digits)
"""room((weights, rows, width)): undefined digits of ``rows`` rows of at most ``width`` inputs, where any of
``weights``, a tuple of packed ones, is multiplied so, else None. Of one model some may be and others not, by how many
inputs they have."""


@compiled()
def multiply_beside(
    product: Product, scale: Floats, x: Any, digits: Digits, y: Floats, shrunk: Shrunk, threads: int
) -> None:
    """All parts of a product, as ``multiply_part`` takes them; ``digits`` of as many
    rows, or more, are written."""
    _cut((product.weight, x, digits, threads))
    _multiply_parts((product, scale, x, digits, y, shrunk, threads), threads)


@compiled()
def merged_product(product: Product, scale: Floats, x: Any, y: Floats, out: Any, threads: int) -> None:
    rows, ranks = scale.shape
    shrunk = room_for_shrunk(rows, ranks, product.tiles.shape[0] > 0)
    digits = room(((product.weight,), rows, width_of(product.weight)))
    multiply_beside(product, scale, x, digits, y, shrunk, threads)
    # The up-projection needs every rank of a row, so it is a second parallel pass, which also rounds to ``out``.
    _expand_beside((product, ranks, shrunk, y, out, threads), threads)


@inner(**INNER)
def _expand_part(product: Product, ranks: int, shrunk: Shrunk, y: Floats, out: Any, parts: int, part: int) -> None:
    (rows, size), blocks = out.shape, product.weight.shape[0]
    start, stop = part * blocks // parts * LANES, min((part + 1) * blocks // parts * LANES, size)
    expand_rows(product, ranks, shrunk, y, 0, rows, start, stop)
    for t in range(rows):
        own, made = y[t, start:stop], out[t, start:stop]
        for i in range(made.shape[0]):
            made[i] = narrow(own[i], made[i])


_expand_beside = in_parts(_expand_part)
