"""Products with int8 weights in whole numbers.

A row of activations is a scale times whole numbers of 16 bits, and each of these is two signed digits of 8 bits, which
a processor multiplies with bytes: x ~ scale (256 high + low). The sums of digits times weights are exact, in whatever
order they are formed, so that a row's value depends on that row alone. A weight is read once for both digits.

The numbers of a row are as fine as its largest one allows: 1 / 32639 of it. This form of 8-bit products is our own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Digits, Floats
from ladle.kernels.cpu.compiling.compiler import EXACT, INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.intrinsics import address
from ladle.kernels.cpu.matrix_unit import ROWS, has_integer_unit
from ladle.kernels.cpu.row_products import multiply, multiply_by_vectors
from ladle.kernels.cpu.tiles import LANES, has_fours

TOGETHER = 4
"""Inputs a step: their bytes are multiplied and added up by one instruction."""
MOST_INPUTS = 1 << 16
"""A sum of more could leave 32 bits: each term is at most 128 times 255."""
_TILE_INPUTS = ROWS * TOGETHER
_LARGEST = 127 * 256 + 127
"""What two digits can be at most."""
_ZERO = 128
"""What stands for a weight of zero: weights are held as unsigned numbers, since digits have the sign."""
_FINITE, _TINY = 0x7F800000, 0x0DA24260
"""The patterns of infinity, and of 1e-30: a row without a larger number than this one is zero."""
_FEW, _TOGETHER = 2, 16
"""Rows that vectors multiply sooner than the unit for matrices, and rows whose sums are held at once."""
_GROUP = 8
"""Blocks that all rows are multiplied with before the next ones."""
_I8, _I32 = ir.IntType(8), ir.IntType(32)
_WORDS = ir.VectorType(_I32, LANES)


def has_digits() -> bool:
    """Whether one instruction of this processor multiplies bytes by fours."""
    return has_integer_unit() or has_fours()


def padded(inputs: int) -> int:
    """``inputs``, filled up to what a tile takes."""
    return -(-inputs // _TILE_INPUTS) * _TILE_INPUTS


def fits_digits(inputs: int) -> bool:
    """Whether weights of so many inputs are multiplied so here: sums stay within 32 bits, and what fills them up is at
    most an eighth."""
    return has_digits() and inputs <= MOST_INPUTS and 8 * padded(inputs) <= 9 * inputs


def _in_digits(typing_context: Any, weight: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(signature.args[0].dtype == types.uint8))

    return types.boolean(weight), generate


def _fours(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(has_fours()))

    return types.boolean(), generate


def _as_float(typing_context: Any, pattern: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _cut(typing_context: Any, row: Any, factor: Any, high: Any, low: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, factor, high, low = arguments
        floats, bytes_ = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_I8, LANES)
        read = builder.load(builder.inttoptr(row, floats.as_pointer()))
        read.align = 4
        one = builder.insert_element(ir.Constant(floats, ir.Undefined), factor, ir.Constant(_I32, 0))
        scaled = builder.fmul(read, builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES)))
        nearest = builder.module.declare_intrinsic(f"llvm.rint.v{LANES}f32", (), ir.FunctionType(floats, [floats]))
        # value = 256 upper + lower with -128 <= lower < 128: 128 is added before the shift, so that the upper digit is
        # the nearest and not the one below.
        whole = builder.fptosi(builder.call(nearest, [scaled]), _WORDS)
        upper = builder.ashr(builder.add(whole, ir.Constant(_WORDS, [128] * LANES)), ir.Constant(_WORDS, [8] * LANES))
        # The lower digit is what is left of the lowest byte, read as a signed number.
        for number, place in ((upper, high), (whole, low)):
            stored = builder.store(builder.trunc(number, bytes_), builder.inttoptr(place, bytes_.as_pointer()))
            stored.align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate


in_digits: Any = intrinsic(_in_digits)
"""in_digits(weight): whether packed weights are held for this kind of product; known when it is compiled."""
_has_fours: Any = intrinsic(_fours)
_float_of: Any = intrinsic(_as_float)
_cut_sixteen: Any = intrinsic(_cut)
"""_cut_sixteen(row, factor, high, low): the digits of sixteen float32 from the address ``row`` on, times ``factor``."""


@inner(**INNER)
def width_of(weight: Any) -> int:
    """Bytes of one digit of a row for the packed ``weight`` [..., steps, 64]; 0 where it is not multiplied so."""
    return weight.shape[-2] * TOGETHER if in_digits(weight) else 0


@inner(**INNER)
def room_for_digits(rows: int, width: int) -> Digits:
    """Undefined digits of ``rows`` rows of at most ``width`` inputs."""
    count = rows if width > 0 else 0
    values = aligned((2 * count, width), np.empty(0, np.int8))
    return Digits(values, np.empty((count, 2), np.int32), np.empty(count, np.float32))


@inner(**EXACT)
def cut_rows(x: Any, width: int, digits: Digits, first: int, last: int) -> None:
    """Digits of the rows ``first`` to ``last`` of ``x`` [rows, inputs] float32, with zeros up to ``width``."""
    for t in range(first, last):
        row, high, low = x[t], digits.values[2 * t, :width], digits.values[2 * t + 1, :width]
        # As patterns, what is no number is larger than infinity, and infinity than any number.
        patterns, most = row.view(np.int32), np.int32(0)
        for i in range(patterns.shape[0]):
            most = max(most, patterns[i] & np.int32(0x7FFFFFFF))
        largest = _float_of(most)
        # A row that has what is no number gets digits of nothing, and a scale that makes every output no number.
        number = _TINY < most < _FINITE
        # Symmetric quantisation to 16 bits per row: the largest magnitude becomes 32639, what two signed digits hold.
        scale = largest / np.float32(_LARGEST)
        factor = np.float32(_LARGEST) / largest if number else np.float32(0)
        start = row.shape[0] if number else 0
        high[start:], low[start:] = 0, 0
        if number:
            whole = row.shape[0] // LANES * LANES
            for i in range(0, whole, LANES):
                _cut_sixteen(address(row) + 4 * i, factor, address(high) + i, address(low) + i)
            for i in range(whole, row.shape[0]):
                # The same cut one by one, for a row whose length is no multiple of the vector: high = round(x / 256),
                # low = the rest as a signed byte.
                rest: Any = np.int32(np.rint(row[i] * factor))
                high[i], low[i] = (rest + np.int32(128)) >> np.int32(8), rest
        # Weights are held as w + 128, so each sum is too large by 128 times the sum of the row's digits: taken off
        # later.
        total_high: Any = np.int32(0)
        total_low: Any = np.int32(0)
        for i in range(high.shape[0]):
            total_high += np.int32(high[i])
        for i in range(low.shape[0]):
            total_low += np.int32(low[i])
        digits.sums[t, 0], digits.sums[t, 1] = np.int32(_ZERO) * total_high, np.int32(_ZERO) * total_low
        digits.scales[t] = scale if most < _FINITE else np.float32(np.nan)


@inner(**INNER)
def multiply_digits(weight: Any, units: Floats, digits: Digits, y: Floats, first: int, last: int) -> None:
    """y[:, 16 first : 16 last], the outputs of the blocks ``first`` to ``last``.

    The digits are rows like any others. Few of them are multiplied by vectors, which wait for the memory less than the
    unit for matrices does: the sums are exact, so that nothing tells one way from the other.

    ``weight`` [blocks, steps, 64] uint8, as ``tiled_product.pack`` makes it; ``units`` [outputs in whole blocks], what
    one of an output's weights counts; ``y`` [rows, outputs in whole blocks].
    """
    # Sums of digits for some rows and eight blocks at a time stay in a core's cache until they are put together.
    rows = y.shape[0]
    made = aligned((2 * _TOGETHER, _GROUP * LANES), digits.sums)
    for start in range(first, last, _GROUP):
        stop = min(start + _GROUP, last)
        part, unit = weight[start:stop], units[start * LANES : stop * LANES]
        # A row is two rows of digits in one int8 product with int32 sums; the epilogue puts both together as 256 high +
        # low, and dequantises by the scale of the row and the step of the output channel.
        for t in range(0, rows, _TOGETHER):
            own = digits.values[2 * t : 2 * min(t + _TOGETHER, rows)]
            if _has_fours() and rows <= _FEW:
                multiply_by_vectors(part, own, made, 0, stop - start)
            else:
                multiply(part, own, made, 0, stop - start)
            for q in range(own.shape[0] // 2):
                # What the weights' own zero added to the sums of a row is the same for every output.
                scale, high, low = digits.scales[t + q], digits.sums[t + q, 0], digits.sums[t + q, 1]
                uppers, lowers, out = made[2 * q], made[2 * q + 1], y[t + q, start * LANES : stop * LANES]
                for i in range(out.shape[0]):
                    upper, lower = np.float32(uppers[i] - high), np.float32(lowers[i] - low)
                    out[i] = (upper * np.float32(256) + lower) * scale * unit[i]
