"""Products of rows with packed weights, in vectors or in the processor's unit for matrices, compiled for it.

The value of a row does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from ladle.kernels.cpu.compiler import INNER
from ladle.kernels.cpu.intrinsics import address
from ladle.kernels.cpu.matrix_unit import CONFIGS, LINE, ROWS, configure, fits, matrix_tile, release
from ladle.kernels.cpu.tiles import blocks_for, tile

_MOST_ROWS = 6
"""Rows of the largest tile."""
_GROUP = 4
"""Blocks that all rows are multiplied with before the next ones: together they stay in a core's own cache."""
_GROUP_OF_MATRICES = 8


def _sweep(rows: int) -> Any:
    """Compiled products of ``rows`` rows with the blocks ``first`` to ``last``."""
    # Few rows leave registers free for several weight blocks side by side; the rest is done block by block.
    blocks = blocks_for(rows)
    wide, narrow_tile = tile(rows, blocks), tile(rows, 1)

    @njit(**INNER)
    def sweep(weight: Any, x: Any, y: Any, first: int, last: int, row: int) -> None:
        block = first
        while block + blocks <= last:
            wide(weight, x, y, block, row)
            block += blocks
        while block < last:
            narrow_tile(weight, x, y, block, row)
            block += 1

    return sweep


_one, _two, _four, _six = (_sweep(rows) for rows in (1, 2, 4, _MOST_ROWS))


@njit(**INNER)
def multiply_by_vectors(weight: Any, x: Any, y: Any, first: int, last: int) -> None:
    rows = x.shape[0]
    for start in range(first, last, _GROUP):
        stop = min(start + _GROUP, last)
        # Register blocking over the rows: tiles of six as long as they fit, then what is left in 4, 2 and 1.
        row = 0
        while rows - row >= _MOST_ROWS:
            _six(weight, x, y, start, stop, row)
            row += _MOST_ROWS
        if rows - row >= 4:
            _four(weight, x, y, start, stop, row)
            row += 4
        if rows - row >= 2:
            _two(weight, x, y, start, stop, row)
            row += 2
        if rows - row == 1:
            _one(weight, x, y, start, stop, row)


_one_by_four, _one_by_one, _two_by_two, _two_by_one = (
    matrix_tile(*shape) for shape in ((1, 4), (1, 1), (2, 2), (2, 1))
)


@njit(**INNER)
def _multiply_matrices(weight: Any, x: Any, y: Any, first: int, last: int) -> None:
    rows, steps = x.shape[0], weight.shape[1] // ROWS
    given, held, made = address(x), address(weight), address(y)
    given_row, held_block, made_row = x.strides[0], weight.strides[0], y.strides[0]
    whole = rows // (2 * ROWS) * 2 * ROWS
    for start in range(first, last, _GROUP_OF_MATRICES):
        stop = min(start + _GROUP_OF_MATRICES, last)
        # Two tiles of rows by two blocks read each tile from the caches half as often as one by four.
        if whole > 0:
            configure(CONFIGS, ROWS)
            for row in range(0, whole, 2 * ROWS):
                own, out = given + row * given_row, made + row * made_row
                for block in range(start, stop, 2):
                    at, to = held + block * held_block, out + block * LINE
                    if block + 2 <= stop:
                        _two_by_two(x, own, given_row, at, held_block, to, made_row, steps)
                    else:
                        _two_by_one(x, own, given_row, at, held_block, to, made_row, steps)
        row = whole
        while row < rows:
            count = min(ROWS, rows - row)
            configure(CONFIGS, count)
            own, out = given + row * given_row, made + row * made_row
            block = start
            while block + 4 <= stop:
                at, to = held + block * held_block, out + block * LINE
                _one_by_four(x, own, given_row, at, held_block, to, made_row, steps)
                block += 4
            while block < stop:
                at, to = held + block * held_block, out + block * LINE
                _one_by_one(x, own, given_row, at, held_block, to, made_row, steps)
                block += 1
            row += count
    release()


@njit(**INNER)
def multiply(weight: Any, x: Any, y: Any, first: int, last: int) -> None:
    """y of the outputs of the blocks ``first`` to ``last``; arguments as of ``tiles.tile``.

    In the processor's unit for matrices, where there is one and it fits, whatever the number of rows: a row's value is
    to be the same in every step.
    """
    if fits(weight):
        _multiply_matrices(weight, x, y, first, last)
    else:
        multiply_by_vectors(weight, x, y, first, last)
