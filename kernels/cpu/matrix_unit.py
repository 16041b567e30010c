"""The unit of a processor that multiplies whole tiles of matrices (AMX), as compiled loops call it.

A tile register holds sixteen rows of 64 bytes. Packed weights of bfloat16 (``tiled_product.pack``) and of whole numbers
(``digits``) lie in memory as the unit reads them: sixteen steps of a block are one tile. A row of sums depends on that
row of activations alone, and is formed in the order of the inputs, however many rows a tile has.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ladle.kernels.cpu.tiles import features

ROWS = 16
"""Rows of activations a tile, and steps of weights."""
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
LINE, TILE = 64, 1024
"""Bytes of a row of a tile, and of a whole one."""
_SUMS, _GIVEN, _HELD = (0, 1, 2, 3), (4, 5), (6, 7)
"""Which registers hold what. Four sums hide the latency of each other's additions."""
_PRODUCTS = {types.int16: "tdpbf16ps", types.int8: "tdpbsud"}
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_POINTER = _I8.as_pointer()


@functools.cache
def may_use_tiles() -> bool:
    """Whether this process may: Linux wants to be asked before the first use."""
    if not (sys.platform == "linux" and platform.machine() == "x86_64" and features().get("amx-tile")):
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
    except (OSError, AttributeError):
        return False


def has_matrix_unit() -> bool:
    """Whether this process may multiply bfloat16 in such a unit."""
    return bool(features().get("amx-bf16")) and may_use_tiles()


def has_integer_unit() -> bool:
    """Whether this process may multiply whole numbers of 8 bits in such a unit."""
    return bool(features().get("amx-int8")) and may_use_tiles()


def _configs() -> Any:
    """[17, 64] uint8: what the unit loads before tiles of so many rows; weights always have sixteen steps."""
    configs = np.zeros((ROWS + 1, 64), np.uint8)
    # Per register: bytes of a line (two bytes each, from 16 on) and how many lines there are (from 48 on). Sums and
    # rows have as many lines as there are rows; weights are always whole.
    configs[:, 0] = 1  # the only palette
    configs[:, 16:32].view(np.uint16)[:] = LINE
    for rows in range(ROWS + 1):
        configs[rows, [48 + register for register in (*_SUMS, *_GIVEN)]] = rows
        configs[rows, [48 + register for register in _HELD]] = ROWS
    return configs


CONFIGS: Any = _configs()
"""CONFIGS[n]: for ``configure``, tiles of n rows."""


def _call(builder: Any, name: str, arguments: list[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.{name}", (), kind), arguments)


def _register(number: int) -> Any:
    return ir.Constant(_I8, number)


def _fits(typing_context: Any, weight: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Known when the loop is compiled: for weights that the processor has no unit for, it is the constant false.
        unit = {types.int16: has_matrix_unit, types.uint8: has_integer_unit}.get(signature.args[0].dtype)
        if unit is None or not unit():
            return ir.Constant(ir.IntType(1), 0)
        held = context.make_array(signature.args[0])(context, builder, arguments[0])
        # Steps that are no whole tile would be read beyond the block: such weights go through vectors.
        steps = cgutils.unpack_tuple(builder, held.shape, 3)[1]
        rest = builder.urem(steps, ir.Constant(_I64, ROWS))
        return builder.icmp_unsigned("==", rest, ir.Constant(_I64, 0))

    return types.boolean(weight), generate


def _configure(typing_context: Any, configs: Any, rows: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if may_use_tiles():
            table = context.make_array(signature.args[0])(context, builder, arguments[0])
            start = builder.add(builder.ptrtoint(table.data, _I64), builder.mul(arguments[1], ir.Constant(_I64, LINE)))
            _call(builder, "ldtilecfg", [builder.inttoptr(start, _POINTER)])
        return context.get_dummy_value()

    return types.void(configs, types.int64), generate


def _release(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if may_use_tiles():
            _call(builder, "tilerelease", [])
        return context.get_dummy_value()

    return types.void(), generate


def _tile(tiles: int, blocks: int, onto: bool) -> Any:
    def typed(
        context: Any, like: Any, given: Any, given_row: Any, held: Any, held_block: Any, made: Any, made_row: Any,
        steps: Any, lower: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            # The dtype of the rows decides the instruction: bfloat16 pairs into float32, signed times unsigned bytes
            # into int32.
            product = _PRODUCTS.get(signature.args[0].dtype)
            if product is None or not may_use_tiles():
                return context.get_dummy_value()  # ``fits`` says no: this is compiled and never called
            _, given, given_row, held, held_block, made, made_row, steps, lower = arguments

            def addresses(start: Any, stride: Any, count: int, apart: int) -> list[Any]:
                return [builder.add(start, builder.mul(stride, ir.Constant(_I64, apart * i))) for i in range(count)]

            def moved(name: str, register: int, address: Any, stride: Any) -> None:
                _call(builder, name, [_register(register), builder.inttoptr(address, _POINTER), stride])

            # The accumulators of all tiles stay in registers over the whole loop. Each step loads one tile of rows per
            # group of sums and, in turns of two registers, the weights of each block, which all rows share.
            line = ir.Constant(_I64, LINE)
            held_at, given_at = addresses(held, held_block, blocks, 1), addresses(given, given_row, tiles, ROWS)
            sums = [_SUMS[tile * (len(_SUMS) // tiles) :][:blocks] for tile in range(tiles)]
            made_at = [
                (register, builder.add(address, ir.Constant(_I64, LINE * index)))
                for own, address in zip(sums, addresses(made, made_row, tiles, ROWS), strict=True)
                for index, register in enumerate(own)
            ]
            # Sums begin at zero, or at what is there where they are to be added onto it.
            for register, address in made_at:
                if onto:
                    moved("tileloadd64", register, address, made_row)
                else:
                    _call(builder, "tilezero", [_register(register)])
            # Both parts of a number follow each other, so that a sum is formed in the order of the steps.
            parts = [given_at, [builder.add(address, lower) for address in given_at]] if onto else [given_at]
            with cgutils.for_range(builder, steps, intp=_I64) as loop:
                held_offset = builder.mul(loop.index, ir.Constant(_I64, TILE))
                given_offset = builder.mul(loop.index, line)
                for part in parts:
                    for register, address in zip(_GIVEN, part, strict=False):
                        moved("tileloadd64", register, builder.add(address, given_offset), given_row)
                    for index, address in enumerate(held_at):
                        weights = _HELD[index % len(_HELD)]
                        moved("tileloadd64", weights, builder.add(address, held_offset), line)
                        for own, rows in zip(sums, _GIVEN, strict=False):
                            _call(builder, product, [_register(number) for number in (own[index], rows, weights)])
            for register, address in made_at:
                moved("tilestored64", register, address, made_row)
            return context.get_dummy_value()

        return types.void(like, *[types.int64] * 8), generate

    return intrinsic(typed)


fits: Any = intrinsic(_fits)
"""fits(weight): whether the unit multiplies packed weights [blocks, steps, numbers per step]: bfloat16 (int16) or whole
numbers (uint8), whole tiles of steps."""
configure: Any = intrinsic(_configure)
"""configure(CONFIGS, rows): from now on this thread's tiles of activations and of sums have ``rows`` rows."""
release: Any = intrinsic(_release)
"""release(): this thread has no tiles any more, which a change of threads would have to save."""


@functools.cache
def matrix_tile(tiles: int, blocks: int, onto: bool = False) -> Any:
    """What compiled code calls as
    ``matrix_tile(like, given, given_row, held, held_block, made, made_row, steps, lower)``: the products of ``tiles``
    tiles of rows, one below the other, and ``blocks`` blocks of sixteen outputs; ``tiles`` times ``blocks`` is at most
    four. After ``configure``, whose rows each tile has.

    ``like``: an array of the rows' dtype: of int16, pairs of bfloat16 are added up in float32; of int8, four numbers
    times four unsigned ones in int32. The others are addresses and bytes. ``given``: rows ``given_row`` apart, of 64
    bytes a step. ``held``: a tile of 1024 bytes a step and block, as weights are packed, blocks ``held_block`` apart.
    ``made``: rows of sums, ``made_row`` apart. ``onto``: they are added to what is there, and each given number is the
    sum of two: the second is ``lower`` bytes after the first. Else ``lower`` is not looked at.
    """
    return _tile(tiles, blocks, onto)
