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
        return builder.trunc(_rounded(builder, number, ir.IntType(32)), ir.IntType(16))

    return like(types.float32, like), generate


def _rounded(builder: Any, number: Any, word: Any) -> Any:
    """The bfloat16 patterns of float32, in the lower halves of words of the type ``word``, which may be a vector."""

    def constant(value: int) -> Any:
        return ir.Constant(word, [value] * word.count if isinstance(word, ir.VectorType) else value)

    bits = builder.bitcast(number, word)
    # To the nearest, the even one of two; what is no number stays none, which rounding could make an infinity of.
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    none = builder.fcmp_unordered("uno", number, number)
    quiet = builder.or_(bits, constant(0x400000))
    return builder.lshr(builder.select(none, quiet, rounded), constant(16))


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


_COUNT, _LINE = 16, 64
"""Words of a vector, and bytes."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_I32, _COUNT)


def _read(builder: Any, place: Any, kind: Any) -> Any:
    loaded = builder.load(builder.inttoptr(place, kind.as_pointer()))
    loaded.align = 2
    return loaded


_FLOATS, _FLAGS = ir.VectorType(ir.FloatType(), _COUNT), ir.VectorType(ir.IntType(1), _COUNT)
_EXP = (1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0)
"""Of e^r by powers of r, the highest first: right to 2^-18 where |r| is at most half of ln 2."""
_LOG2_E, _LN_2, _LN_2_REST = 1.4426950408889634, 0.693359375, -2.12194440e-4  # ln 2 in two parts, the first one short
_LEAST = -60.0


def _splat(builder: Any, number: Any) -> Any:
    """``number`` in every lane."""
    kind = ir.VectorType(number.type, _COUNT)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_WORDS, [0] * _COUNT))


def _lanes(number: Any, kind: Any = _FLOATS) -> Any:
    return ir.Constant(kind, [number] * _COUNT)


def _over_vectors(builder: Any, low: Any, high: Any, end: Any, body: Any) -> None:
    """``body(index, seen)`` for each vector up to ``end``: which of its lanes are from ``low`` to ``high``."""
    low, high = (_splat(builder, builder.trunc(bound, _I32)) for bound in (low, high))
    own = ir.Constant(_WORDS, list(range(_COUNT)))
    with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), end, ir.Constant(_I64, _COUNT), intp=_I64) as (
        index,
        _,
    ):
        # Lanes before ``low`` and from ``high`` on are read, since rows are padded, and masked.
        places = builder.add(_splat(builder, builder.trunc(index, _I32)), own)
        above, below = builder.icmp_signed(">=", places, low), builder.icmp_signed("<", places, high)
        body(index, builder.and_(above, below))


def _folded(builder: Any, vector: Any, together: Any) -> Any:
    """All lanes of ``vector`` as one number, halves with halves."""
    # Four halvings in a fixed order, so that a sum is rounded the same way each time.
    lanes = _COUNT
    while lanes > 1:
        lanes //= 2
        halves = [[start + lane for lane in range(lanes)] for start in (0, lanes)]
        order = [ir.Constant(ir.VectorType(_I32, lanes), half) for half in halves]
        vector = together(*(builder.shuffle_vector(vector, vector, half) for half in order))
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _largest(typing_context: Any, start: Any, low: Any, high: Any, end: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, low, high, end = arguments
        # Sixteen running maxima side by side; an ordered comparison is false for NaN, which is so passed over.
        place = cgutils.alloca_once_value(builder, _lanes(float("-inf")))

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", other, one), other, one)

        def body(index: Any, seen: Any) -> None:
            given = _read(builder, builder.add(start, builder.shl(index, ir.Constant(_I64, 2))), _FLOATS)
            builder.store(larger(builder.load(place), builder.select(seen, given, _lanes(float("-inf")))), place)

        _over_vectors(builder, low, high, end, body)
        return _folded(builder, builder.load(place), larger)

    return types.float32(*[types.int64] * 4), generate


def _soften(typing_context: Any, start: Any, low: Any, high: Any, end: Any, scaling: Any, most: Any, made: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, low, high, end, scaling, most, made = arguments
        kinds = {"fma": [_FLOATS] * 3, "floor": [_FLOATS]}
        fma, floor = (
            builder.module.declare_intrinsic(f"llvm.{name}.v{_COUNT}f32", (), ir.FunctionType(_FLOATS, kind))
            for name, kind in kinds.items()
        )
        # scaling x - most in one rounding; ln 2 is taken off in two parts, so that r keeps its last bits.
        scaling, less = _splat(builder, scaling), _splat(builder, builder.fneg(most))
        place = cgutils.alloca_once_value(builder, _lanes(0.0))

        def body(index: Any, seen: Any) -> None:
            given = _read(builder, builder.add(start, builder.shl(index, ir.Constant(_I64, 2))), _FLOATS)
            # e^x = 2^whole e^r, with r within half of ln 2 of zero: a polynomial, and an exponent field.
            x = builder.call(fma, [given, scaling, less])
            x = builder.select(builder.fcmp_ordered("<", x, _lanes(_LEAST)), _lanes(_LEAST), x)
            whole = builder.call(floor, [builder.call(fma, [x, _lanes(_LOG2_E), _lanes(0.5)])])
            r = builder.call(fma, [whole, _lanes(-_LN_2), x])
            r = builder.call(fma, [whole, _lanes(-_LN_2_REST), r])
            power = _lanes(_EXP[0])
            for factor in _EXP[1:]:
                power = builder.call(fma, [power, r, _lanes(factor)])
            exponent = builder.add(builder.fptosi(whole, _WORDS), _lanes(127, _WORDS))
            bits = builder.shl(exponent, _lanes(23, _WORDS))
            number = builder.fmul(power, builder.bitcast(bits, _FLOATS))
            # What is summed up is what the next product will see: the rounded weights.
            word = builder.select(seen, _rounded(builder, number, _WORDS), _lanes(0, _WORDS))
            to = builder.add(made, builder.shl(index, ir.Constant(_I64, 1)))
            halves = ir.VectorType(ir.IntType(16), _COUNT)
            builder.store(builder.trunc(word, halves), builder.inttoptr(to, halves.as_pointer())).align = 2
            kept = builder.bitcast(builder.shl(word, _lanes(16, _WORDS)), _FLOATS)
            builder.store(builder.fadd(builder.load(place), kept), place)

        _over_vectors(builder, low, high, end, body)
        return _folded(builder, builder.load(place), builder.fadd)

    return types.float32(*[types.int64] * 4, types.float32, types.float32, types.int64), generate


def _rescale(typing_context: Any, total: Any, old: Any, part: Any, new: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, old, part, new, count = arguments
        old, new = _splat(builder, old), _splat(builder, new)
        step = ir.Constant(_I64, _COUNT)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), count, step, intp=_I64) as (index, _):
            to, given = (builder.add(start, builder.shl(index, ir.Constant(_I64, 2))) for start in (total, part))
            # Product and sum apart, without fusing: whoever adds the parts of a sequence, in whatever split, rounds
            # alike.
            kept = builder.fmul(_read(builder, to, _FLOATS), old)
            made = builder.fadd(kept, builder.fmul(_read(builder, given, _FLOATS), new))
            builder.store(made, builder.inttoptr(to, _FLOATS.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.float32, types.int64), generate


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
            # Of two rows ``size`` apart the first keeps its lanes without that bit and the second those with it; they
            # exchange the rest. After 8, 4, 2 and 1 rows and lanes have changed places.
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
"""largest(start, low, high, end): of the float32 from the address ``start`` on, the ``low``-th to before the
``high``-th; what is no number is passed over. Read up to ``end``: at least ``high``, and a multiple of sixteen."""
soften: Any = intrinsic(_soften)
"""soften(start, low, high, end, scaling, most, made): e^(scaling x - most) of what ``largest`` looks at, as bfloat16
from the address ``made`` on, with zeros up to ``end`` beside them; returns their sum. Right to 2^-18 before they are
rounded; e^-60 of less than -60; what is no number stays none."""
rescale: Any = intrinsic(_rescale)
"""rescale(total, old, part, new, count): total = total old + part new, of ``count`` float32, a multiple of sixteen,
from two addresses on; every operation is rounded."""
interleave_words: Any = intrinsic(_interleave_words)
"""interleave_words(one, other, made): sixteen numbers of 16 bits each at the addresses ``one`` and ``other`` -> pairs,
one's in the lower halves, in the 64 bytes from ``made`` on, which is a multiple of 64."""
transpose_words: Any = intrinsic(_transpose_words)
"""transpose_words(source, stride, made): sixteen rows of sixteen words, the first at the address ``source`` and each
``stride`` bytes after the one before -> their columns as rows of 64 bytes from ``made`` on, a multiple of 64."""
