"""Keys and values put into the order in which the unit for matrices reads them: words of two numbers of 16 bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

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


interleave_words: Any = intrinsic(_interleave_words)
"""interleave_words(one, other, made): sixteen numbers of 16 bits each at the addresses ``one`` and ``other`` -> pairs,
one's in the lower halves, in the 64 bytes from ``made`` on, which is a multiple of 64."""
transpose_words: Any = intrinsic(_transpose_words)
"""transpose_words(source, stride, made): sixteen rows of sixteen words, the first at the address ``source`` and each
``stride`` bytes after the one before -> their columns as rows of 64 bytes from ``made`` on, a multiple of 64."""
