"""Single instructions that compiled loops need and Python has no word for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _widen(typing_context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        if signature.args[0] == types.uint16:
            return builder.fpext(builder.bitcast(number, ir.HalfType()), ir.FloatType())
        if signature.args[0] == types.int16:
            # bfloat16 is the upper half of a float32: shift it there, the lower half is zero.
            word = builder.zext(number, ir.IntType(32))
            return builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), ir.FloatType())
        return number

    return types.float32(number), generate


def _narrow(typing_context: Any, number: Any, like: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, _ = arguments
        if like != types.int16:
            return number
        word = ir.IntType(32)
        bits = builder.bitcast(number, word)
        # To the nearest, the even one of two; what is no number stays none, which rounding could make an infinity of.
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        none = builder.fcmp_unordered("uno", number, number)
        quiet = builder.or_(bits, ir.Constant(word, 0x400000))
        return builder.trunc(builder.lshr(builder.select(none, quiet, rounded), ir.Constant(word, 16)), ir.IntType(16))

    return like(types.float32, like), generate


def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Write the exponent field of a float32 and leave mantissa and sign zero.
        biased = builder.add(arguments[0], ir.Constant(ir.IntType(32), 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(ir.IntType(32), 23)), ir.FloatType())

    return types.float32(types.int32), generate


def _prefetch(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = (ir.Constant(flag, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.uintp), generate


def _address(typing_context: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(held.data, ir.IntType(64))

    return types.int64(array), generate


def _largest(typing_context: Any, start: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, count = arguments
        lanes = 16
        floats, word = ir.VectorType(ir.FloatType(), lanes), ir.IntType(64)

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", other, one), other, one)

        # Sixteen running maxima side by side; an ordered comparison is false for NaN, which is so passed over.
        place = cgutils.alloca_once(builder, floats)
        builder.store(ir.Constant(floats, [float("-inf")] * lanes), place)
        step = ir.Constant(word, lanes)
        with cgutils.for_range_slice(builder, ir.Constant(word, 0), count, step, intp=word) as (index, _):
            at = builder.add(start, builder.mul(index, ir.Constant(word, 4)))
            read = builder.load(builder.inttoptr(at, floats.as_pointer()))
            read.align = 4
            builder.store(larger(builder.load(place), read), place)
        most = builder.load(place)
        # Fold the vector in halves: 8, 4, 2, 1.
        while lanes > 1:
            lanes //= 2
            halves = [[start + lane for lane in range(lanes)] for start in (0, lanes)]
            order = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), half) for half in halves]
            one, other = (builder.shuffle_vector(most, most, half) for half in order)
            most = larger(one, other)
        return builder.extract_element(most, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.int64, types.int64), generate


_COUNT, _LINE = 16, 64
"""Words of a vector, and bytes."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_I32, _COUNT)


def _read(builder: Any, place: Any, kind: Any) -> Any:
    loaded = builder.load(builder.inttoptr(place, kind.as_pointer()))
    loaded.align = 2
    return loaded


def _write(builder: Any, words: Any, place: Any) -> None:
    builder.store(words, builder.inttoptr(place, _WORDS.as_pointer())).align = _LINE


def _interleave_words(typing_context: Any, one: Any, other: Any, made: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        halves = ir.VectorType(ir.IntType(16), _COUNT)
        # A pair of bfloat16 as one word: the second number shifted into the upper half.
        lower, upper = (builder.zext(_read(builder, place, halves), _WORDS) for place in arguments[:2])
        upper = builder.shl(upper, ir.Constant(_WORDS, [16] * _COUNT))
        _write(builder, builder.or_(lower, upper), arguments[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _transpose_words(typing_context: Any, source: Any, stride: Any, made: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, made = arguments
        rows = []
        for index in range(_COUNT):
            place = builder.add(source, builder.mul(stride, ir.Constant(_I64, index)))
            rows.append(_read(builder, place, _WORDS))
        # In four rounds blocks of 8, 4, 2 and 1 words change places with those across the diagonal.
        for size in (8, 4, 2, 1):
            lower = [lane if not lane & size else _COUNT + lane - size for lane in range(_COUNT)]
            upper = [lane + size if not lane & size else _COUNT + lane for lane in range(_COUNT)]
            orders = [ir.Constant(_WORDS, order) for order in (lower, upper)]
            for index in range(_COUNT):
                if not index & size:
                    one, other = rows[index], rows[index + size]
                    rows[index], rows[index + size] = (builder.shuffle_vector(one, other, order) for order in orders)
        for index, row in enumerate(rows):
            _write(builder, row, builder.add(made, ir.Constant(_I64, _LINE * index)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


widen: Any = intrinsic(_widen)
"""widen(number): float32 of a float16 bit pattern (uint16), of a bfloat16 bit pattern (int16), or of a float32."""
narrow: Any = intrinsic(_narrow)
"""narrow(number, like): the float32 ``number`` as what ``like`` is, a bfloat16 bit pattern (int16) or a float32."""
power_of_two: Any = intrinsic(_power_of_two)
"""power_of_two(exponent): 2^exponent as float32, -126 <= exponent <= 127."""
prefetch: Any = intrinsic(_prefetch)
"""prefetch(address): asks for the cache line at ``address``, which need not be there."""
address: Any = intrinsic(_address)
"""address(array): of its first number, as a signed number that other signed ones can be added to."""
largest: Any = intrinsic(_largest)
"""largest(start, count): of ``count`` float32, a multiple of sixteen, from the address ``start`` on; what is no number
is passed over. Numba's own reduction would compare them one by one, because of what is no number."""
interleave_words: Any = intrinsic(_interleave_words)
"""interleave_words(one, other, made): sixteen numbers of 16 bits each at the addresses ``one`` and ``other`` -> pairs,
one's in the lower halves, in the 64 bytes from ``made`` on, which is a multiple of 64."""
transpose_words: Any = intrinsic(_transpose_words)
"""transpose_words(source, stride, made): sixteen rows of sixteen words, the first at the address ``source`` and each
``stride`` bytes after the one before -> their columns as rows of 64 bytes from ``made`` on, a multiple of 64."""
