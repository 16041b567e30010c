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
from numba import njit, types
from numba.extending import intrinsic

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.compiler import EXACT, INNER
from ladle.kernels.cpu.intrinsics import address
from ladle.kernels.cpu.matrix_unit import CONFIGS, LINE, ROWS, configure, has_integer_unit, matrix_tile, release
from ladle.kernels.cpu.tiles import LANES, features
from ladle.kernels.cpu.types import Digits, Floats

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
_FEW, _WIDEST = 2, 4
"""Rows that vectors multiply sooner than the unit for matrices, and blocks that they take at once."""
_GROUP = 8
"""Blocks that all rows are multiplied with before the next ones."""
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_I32, LANES)


def has_digits() -> bool:
    """Whether one instruction of this processor multiplies bytes by fours."""
    return has_integer_unit() or bool(features().get("avx512vnni"))


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


def _vectors(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(bool(features().get("avx512vnni"))))

    return types.boolean(), generate


def _in_unit(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(has_integer_unit()))

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
_in_unit_for_matrices: Any = intrinsic(_in_unit)
_in_vectors: Any = intrinsic(_vectors)
_float_of: Any = intrinsic(_as_float)
_cut_sixteen: Any = intrinsic(_cut)
"""_cut_sixteen(row, factor, high, low): the digits of sixteen float32 from the address ``row`` on, times ``factor``."""


@njit(**INNER)
def width_of(weight: Any) -> int:
    """Bytes of one digit of a row for the packed ``weight`` [..., steps, 64]; 0 where it is not multiplied so."""
    return weight.shape[-2] * TOGETHER if in_digits(weight) else 0


@njit(**INNER)
def room_for_digits(rows: int, width: int) -> Digits:
    """Undefined digits of ``rows`` rows of at most ``width`` inputs."""
    numbers = aligned((rows if width > 0 else 0, 2, width), np.empty(0, np.int8))
    return Digits(numbers, np.empty((numbers.shape[0], 2), np.int32), np.empty(numbers.shape[0], np.float32))


@njit(**EXACT)
def cut_rows(x: Any, width: int, digits: Digits, first: int, last: int) -> None:
    """Digits of the rows ``first`` to ``last`` of ``x`` [rows, inputs] float32, with zeros up to ``width``."""
    for t in range(first, last):
        row, high, low = x[t], digits.numbers[t, 0, :width], digits.numbers[t, 1, :width]
        # As patterns, what is no number is larger than infinity, and infinity than any number.
        patterns, most = row.view(np.int32), np.int32(0)
        for i in range(patterns.shape[0]):
            most = max(most, patterns[i] & np.int32(0x7FFFFFFF))
        largest = _float_of(most)
        # A row that has what is no number gets digits of nothing, and a scale that makes every output no number.
        number = _TINY < most < _FINITE
        scale = largest / np.float32(_LARGEST)
        factor = np.float32(_LARGEST) / largest if number else np.float32(0)
        start = row.shape[0] if number else 0
        high[start:], low[start:] = 0, 0
        if number:
            whole = row.shape[0] // LANES * LANES
            for i in range(0, whole, LANES):
                _cut_sixteen(address(row) + 4 * i, factor, address(high) + i, address(low) + i)
            for i in range(whole, row.shape[0]):
                rest: Any = np.int32(np.rint(row[i] * factor))
                high[i], low[i] = (rest + np.int32(128)) >> np.int32(8), rest
        total_high: Any = np.int32(0)
        total_low: Any = np.int32(0)
        for i in range(high.shape[0]):
            total_high += np.int32(high[i])
        for i in range(low.shape[0]):
            total_low += np.int32(low[i])
        digits.sums[t, 0], digits.sums[t, 1] = np.int32(_ZERO) * total_high, np.int32(_ZERO) * total_low
        digits.scales[t] = scale if most < _FINITE else np.float32(np.nan)


def _vector_tile(rows: int, blocks: int) -> Any:
    def typed(
        context: Any, given: Any, given_row: Any, apart: Any, held: Any, held_block: Any, made: Any, made_row: Any,
        made_apart: Any, steps: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if not features().get("avx512vnni"):
                return context.get_dummy_value()  # another form is taken: this is compiled and never called
            given, given_row, apart, held, held_block, made, made_row, made_apart, steps = arguments

            def places(start: Any, stride: Any, count: int) -> list[Any]:
                return [builder.add(start, builder.mul(stride, ir.Constant(_I64, index))) for index in range(count)]

            def read(address: Any, kind: Any, align: int) -> Any:
                loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
                loaded.align = align
                return loaded

            name = "llvm.x86.avx512.vpdpbusd.512"
            multiply = builder.module.declare_intrinsic(name, (), ir.FunctionType(_WORDS, [_WORDS] * 3))
            nothing = ir.Constant(_WORDS, ir.Undefined)
            held_at = places(held, held_block, blocks)
            digit_at = [digit for row in places(given, given_row, rows) for digit in places(row, apart, 2)]
            before, loop, after = builder.block, *map(builder.append_basic_block, ("inputs", "sums"))
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(_I64)
            step.add_incoming(ir.Constant(_I64, 0), before)
            sums = [[builder.phi(_WORDS) for _ in range(blocks)] for _ in digit_at]
            held_offset = builder.mul(step, ir.Constant(_I64, LINE))
            given_offset = builder.mul(step, ir.Constant(_I64, TOGETHER))
            weights = [read(builder.add(place, held_offset), _WORDS, 1) for place in held_at]
            for own, place in zip(sums, digit_at, strict=True):
                word = read(builder.add(place, given_offset), _I32, 4)
                four = builder.insert_element(nothing, word, ir.Constant(_I32, 0))
                four = builder.shuffle_vector(four, nothing, ir.Constant(_WORDS, [0] * LANES))
                for index, total in enumerate(own):
                    total.add_incoming(ir.Constant(_WORDS, [0] * LANES), before)
                    own[index] = builder.call(multiply, [total, weights[index], four])
                    total.add_incoming(own[index], loop)
            following = builder.add(step, ir.Constant(_I64, 1))
            step.add_incoming(following, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, steps), loop, after)

            builder.position_at_end(after)
            made_at = [digit for row in places(made, made_row, rows) for digit in places(row, made_apart, 2)]
            for own, place in zip(sums, made_at, strict=True):
                for index, total in enumerate(own):
                    at = builder.add(place, ir.Constant(_I64, LINE * index))
                    builder.store(total, builder.inttoptr(at, _WORDS.as_pointer())).align = LINE
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return intrinsic(typed)


_two_by_four, _one_by_four = (_vector_tile(rows, 4) for rows in (2, 1))
_four_by_two, _two_by_two, _one_by_two = (_vector_tile(rows, 2) for rows in (4, 2, 1))
_four_by_one, _two_by_one, _one_by_one = (_vector_tile(rows, 1) for rows in (4, 2, 1))
_of_two_blocks, _of_one_block = matrix_tile(2, 2, "tdpbsud"), matrix_tile(2, 1, "tdpbsud")


@njit(**INNER)
def _sum_vectors(
    given: int, row: int, apart: int, held: int, block: int, made: int, made_row: int, made_apart: int, steps: int,
    rows: int, blocks: int,
) -> None:  # fmt: skip
    """Sums of ``rows`` rows and 1, 2 or 4 ``blocks``; the other arguments as of ``matrix_tile``."""
    t = 0
    while t < rows:
        own, to, left = given + t * row, made + t * made_row, rows - t
        if blocks == 4:
            if left >= 2:
                _two_by_four(own, row, apart, held, block, to, made_row, made_apart, steps)
            else:
                _one_by_four(own, row, apart, held, block, to, made_row, made_apart, steps)
            t += 2
        elif left >= 4:
            if blocks == 2:
                _four_by_two(own, row, apart, held, block, to, made_row, made_apart, steps)
            else:
                _four_by_one(own, row, apart, held, block, to, made_row, made_apart, steps)
            t += 4
        elif left >= 2:
            if blocks == 2:
                _two_by_two(own, row, apart, held, block, to, made_row, made_apart, steps)
            else:
                _two_by_one(own, row, apart, held, block, to, made_row, made_apart, steps)
            t += 2
        else:
            if blocks == 2:
                _one_by_two(own, row, apart, held, block, to, made_row, made_apart, steps)
            else:
                _one_by_one(own, row, apart, held, block, to, made_row, made_apart, steps)
            t += 1


@njit(**INNER)
def multiply_digits(weight: Any, units: Floats, digits: Digits, y: Floats, first: int, last: int) -> None:
    """y[:, 16 first : 16 last], the outputs of the blocks ``first`` to ``last``.

    Few rows are multiplied by vectors, which wait for the memory less than the unit for matrices does. The sums are
    exact, so that nothing tells one way from the other.

    ``weight`` [blocks, steps, 64] uint8, as ``tiled_product.pack`` makes it; ``units`` [outputs in whole blocks], what
    one of an output's weights counts; ``y`` [rows, outputs in whole blocks].
    """
    rows, steps = y.shape[0], weight.shape[1]
    given, row, apart = address(digits.numbers), digits.numbers.strides[0], digits.numbers.strides[1]
    held, held_block = address(weight), weight.strides[0]
    made = aligned((2, ROWS, _WIDEST * LANES), digits.sums)
    to, made_row, made_apart = address(made), made.strides[1], made.strides[0]
    in_unit = _in_unit_for_matrices() and (rows > _FEW or not _in_vectors())
    widest = _WIDEST if rows <= _FEW and not in_unit else 2
    for start in range(first, last, _GROUP):
        stop = min(start + _GROUP, last)
        for t in range(0, rows, ROWS):
            count, own = min(ROWS, rows - t), given + t * row
            if in_unit:
                configure(CONFIGS, count)
            block = start
            while block < stop:
                blocks, at = widest if block + widest <= stop else 1, held + block * held_block
                if not in_unit:
                    _sum_vectors(own, row, apart, at, held_block, to, made_row, made_apart, steps, count, blocks)
                elif blocks == 2:
                    _of_two_blocks(own, row, apart, at, held_block, to, made_row, made_apart, steps // ROWS)
                else:
                    _of_one_block(own, row, apart, at, held_block, to, made_row, made_apart, steps // ROWS)
                # What the weights' own zero added to the sums of a row is the same for every output.
                begin, end = block * LANES, (block + blocks) * LANES
                unit = units[begin:end]
                for q in range(count):
                    scale, high, low = digits.scales[t + q], digits.sums[t + q, 0], digits.sums[t + q, 1]
                    uppers, lowers, out = made[0, q], made[1, q], y[t + q, begin:end]
                    for i in range(out.shape[0]):
                        upper, lower = np.float32(uppers[i] - high), np.float32(lowers[i] - low)
                        out[i] = (upper * np.float32(256) + lower) * scale * unit[i]
                block += blocks
    if in_unit:
        release()
