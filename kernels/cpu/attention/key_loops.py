"""The two innermost loops of attention over a KV pool: a query times some keys, and weights times their values.

Written as LLVM's own code so that sums stay in registers.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ladle.kernels.cpu.tiles import LANES

_I64, _F32 = ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)
_TOGETHER = 4
"""Keys, or vectors of values, whose sums grow side by side."""


def _constant(number: int) -> Any:
    return ir.Constant(_I64, number)


def _floats(builder: Any, address: Any) -> Any:
    """Sixteen numbers at ``address``."""
    loaded = builder.load(builder.inttoptr(address, _FLOATS.as_pointer()))
    # Heads begin at any float32, not at whole vectors: an aligned load would fault.
    loaded.align = 4
    return loaded


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), kind), [a, b, c])


class _Keys:
    """Where the keys or values of one head lie, from ``slot`` on: an address, and bytes from one to the next."""

    def __init__(self, context: Any, builder: Any, kind: Any, pool: Any, slot: Any, which: int, head: Any) -> None:
        array = context.make_array(kind)(context, builder, pool)
        strides = cgutils.unpack_tuple(builder, array.strides, 4)
        # The pool is [slots, 2, heads, d]: ``which`` is 0 for keys and 1 for values, and the numbers of a head lie side
        # by side, so that only the step from slot to slot is a stride.
        self.vectors = builder.udiv(cgutils.unpack_tuple(builder, array.shape, 4)[3], _constant(LANES))
        self.bytes = LANES * 4
        self.stride = strides[0]
        start = builder.add(builder.ptrtoint(array.data, _I64), builder.mul(slot, strides[0]))
        start = builder.add(start, builder.mul(_constant(which), strides[1]))
        self.start = builder.add(start, builder.mul(head, strides[2]))


class _Rows:
    """Where ``count`` rows of a matrix of float32 begin, from the column ``at`` on."""

    def __init__(self, context: Any, builder: Any, kind: Any, matrix: Any, count: int, at: Any) -> None:
        array = context.make_array(kind)(context, builder, matrix)
        stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
        start = builder.add(builder.ptrtoint(array.data, _I64), builder.mul(at, _constant(4)))
        self.starts = [builder.add(start, builder.mul(stride, _constant(row))) for row in range(count)]


def _dots(folded: int) -> Any:
    def typed(context: Any, query: Any, pool: Any, slot: Any, head: Any, count: Any, scores: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            query, pool, slot, head, count, scores, at = arguments
            keys = _Keys(context, builder, signature.args[1], pool, slot, 0, head)
            queries = _Rows(context, builder, signature.args[0], query, folded, _constant(0))
            results = _Rows(context, builder, signature.args[5], scores, folded, at)

            def some(first: Any, many: int) -> None:
                """The scores of ``many`` keys from ``first`` on."""
                starts = [
                    builder.add(keys.start, builder.mul(builder.add(first, _constant(index)), keys.stride))
                    for index in range(many)
                ]
                # A register tile of folded x many accumulators: each key vector is loaded once for all query heads.
                totals = [[_zero(builder) for _ in range(many)] for _ in range(folded)]
                with cgutils.for_range(builder, keys.vectors, intp=_I64) as loop:
                    place = builder.mul(loop.index, _constant(keys.bytes))
                    read = [_floats(builder, builder.add(start, place)) for start in starts]
                    for start, own in zip(queries.starts, totals, strict=True):
                        address = builder.add(start, builder.mul(loop.index, _constant(4 * LANES)))
                        asked = _floats(builder, address)
                        for key, total in zip(read, own, strict=True):
                            builder.store(_fma(builder, asked, key, builder.load(total)), total)
                # Reduce the vectors of partial products across their lanes, four keys at once, and store the scores.
                for start, own in zip(results.starts, totals, strict=True):
                    address = builder.add(start, builder.mul(first, _constant(4)))
                    made = _sums_of(builder, [builder.load(total) for total in own])
                    builder.store(made, builder.inttoptr(address, made.type.as_pointer())).align = 4

            _in_parts(builder, count, some)
            return context.get_dummy_value()

        return types.void(query, pool, types.int64, types.int64, types.int64, scores, types.int64), generate

    return intrinsic(typed)


def _add(folded: int) -> Any:
    def typed(context: Any, weights: Any, at: Any, pool: Any, slot: Any, head: Any, count: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, at, pool, slot, head, count, sums = arguments
            values = _Keys(context, builder, signature.args[2], pool, slot, 1, head)
            factors = _Rows(context, builder, signature.args[0], weights, folded, at)
            results = _Rows(context, builder, signature.args[6], sums, folded, _constant(0))

            def some(first: Any, many: int) -> None:
                """``many`` vectors of the sums from ``first`` on."""
                offsets = [
                    builder.mul(builder.add(first, _constant(index)), _constant(4 * LANES)) for index in range(many)
                ]
                # The tile of sums is loaded, held in registers over all tokens, and stored at the end.
                addresses = [[builder.add(start, offset) for offset in offsets] for start in results.starts]
                totals = [[_zero(builder) for _ in range(many)] for _ in range(folded)]
                for own, row in zip(addresses, totals, strict=True):
                    for place, total in zip(own, row, strict=True):
                        builder.store(_floats(builder, place), total)
                # Along the tokens: value vectors are read once, and each head adds them by its own softmax weight.
                with cgutils.for_range(builder, count, intp=_I64) as loop:
                    start = builder.add(values.start, builder.mul(loop.index, values.stride))
                    read = [
                        _floats(
                            builder,
                            builder.add(
                                start, builder.mul(builder.add(first, _constant(index)), _constant(values.bytes))
                            ),
                        )
                        for index in range(many)
                    ]
                    for factor, row in zip(factors.starts, totals, strict=True):
                        address = builder.add(factor, builder.mul(loop.index, _constant(4)))
                        spread = _spread(builder, builder.load(builder.inttoptr(address, _F32.as_pointer())))
                        for value, total in zip(read, row, strict=True):
                            builder.store(_fma(builder, spread, value, builder.load(total)), total)
                for own, row in zip(addresses, totals, strict=True):
                    for place, total in zip(own, row, strict=True):
                        builder.store(builder.load(total), builder.inttoptr(place, _FLOATS.as_pointer())).align = 4

            _in_parts(builder, values.vectors, some)
            return context.get_dummy_value()

        return types.void(weights, types.int64, pool, types.int64, types.int64, types.int64, sums), generate

    return intrinsic(typed)


def _zero(builder: Any) -> Any:
    """A sum that begins at 0; LLVM keeps it in a register."""
    place = cgutils.alloca_once(builder, _FLOATS)
    builder.store(ir.Constant(_FLOATS, [0.0] * LANES), place)
    return place


def _spread(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _sums_of(builder: Any, vectors: list[Any]) -> Any:
    """The sums over each of one or four vectors, as many numbers in one vector. Each is formed in the same order."""

    def picked(one: Any, other: Any, lanes: list[int]) -> Any:
        order = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return builder.shuffle_vector(one, other, order)

    def halved(one: Any, other: Any, size: int) -> Any:
        """Both with their groups of ``size`` lanes folded in half: those of one, then those of the other."""
        # A shuffle picks the lower halves of all groups, another the upper ones; one addition folds them.
        lower = [start + lane for start in range(0, 2 * LANES, size) for lane in range(size // 2)]
        upper = [lane + size // 2 for lane in lower]
        return builder.fadd(picked(one, other, lower), picked(one, other, upper))

    # A single vector goes through the same tree as four, so that a key's score is rounded alike in both.
    if len(vectors) == 1:
        vectors = vectors * _TOGETHER
        single = True
    else:
        single = False
    a, b, c, d = vectors
    # A pairwise tree over 16 lanes: halves, quarters, pairs, sums.
    quarters = halved(halved(a, b, LANES), halved(c, d, LANES), LANES // 2)  # four lanes of each
    pairs = halved(quarters, quarters, LANES // 4)
    sums = halved(pairs, pairs, LANES // 8)
    return picked(sums, sums, [0] if single else [0, 1, 2, 3])


def _in_parts(builder: Any, count: Any, some: Any) -> None:
    """``some(first, many)`` for the numbers below ``count``: as many as go together, then one by one."""
    # Four independent sums hide the latency of a fused multiply-add; a rest of one to three takes the same code with
    # one.
    whole = builder.mul(builder.udiv(count, _constant(_TOGETHER)), _constant(_TOGETHER))
    with cgutils.for_range_slice(builder, _constant(0), whole, _constant(_TOGETHER), intp=_I64) as (first, _):
        some(first, _TOGETHER)
    with cgutils.for_range_slice(builder, whole, count, _constant(1), intp=_I64) as (first, _):
        some(first, 1)


@functools.cache
def dot_keys(folded: int) -> Any:
    """What compiled code calls as ``dot_keys(queries, pool, slot, head, count, scores, at)``: scores[f, at + i]
    = queries[f] . key of ``slot + i``, for i < ``count`` and the first ``folded`` rows f.

    ``queries`` [any, d] float32; ``pool`` [slots, 2, heads, d] float32, d a multiple of 16;
    ``scores`` [any, any] float32. The sum of a key does not depend on ``count``.
    """
    return _dots(folded)


@functools.cache
def add_values(folded: int) -> Any:
    """What compiled code calls as ``add_values(weights, at, pool, slot, head, count, sums)``: sums[f] += sum_i
    weights[f, at + i] value of ``slot + i``, in their order, for the first ``folded`` rows f.

    ``weights`` [any, any] and ``sums`` [any, d] float32; the rest as in ``dot_keys``.
    """
    return _add(folded)
