"""Products of rows with packed weights, and what a bank adds to them, in vectors or in the processor's unit for
matrices, compiled for it.

The value of a row does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ladle.kernels.cpu.aligned import aligned
from ladle.kernels.cpu.arrays import Floats, Halves, Product, Shrunk
from ladle.kernels.cpu.compiling.compiler import EXACT, INNER
from ladle.kernels.cpu.compiling.inner_code import inner
from ladle.kernels.cpu.intrinsics import address, narrow, widen
from ladle.kernels.cpu.matrix_unit import CONFIGS, LINE, ROWS, TILE, configure, fits, matrix_tile, release
from ladle.kernels.cpu.tiles import LANES, blocks_for, tile

_MOST_ROWS = 6
"""Rows of the largest tile."""
_GROUP = 4
"""Blocks that all rows are multiplied with before the next ones: together they stay in a core's own cache."""
_GROUP_OF_MATRICES = 8
RANKS = 2 * ROWS
"""Ranks of a tile of expand factors."""


def _sweep(rows: int) -> Any:
    """Compiled products of ``rows`` rows with the blocks ``first`` to ``last``."""
    # Few rows leave registers free for several weight blocks side by side; the rest is done block by block.
    blocks = blocks_for(rows)
    wide, narrow_tile = tile(rows, blocks), tile(rows, 1)

    @inner(**INNER)
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


@inner(**INNER)
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


def _matrices(onto: bool) -> Any:
    one_by_four, one_by_one, two_by_two, two_by_one = (
        matrix_tile(*shape, onto) for shape in ((1, 4), (1, 1), (2, 2), (2, 1))
    )

    @inner(**INNER)
    def products(
        weight: Any, x: Any, y: Any, first: int, last: int, top: int, bottom: int, step: int, steps: int, group: int
    ) -> None:
        """The rows ``top`` to ``bottom``, of the steps ``step`` to ``step + steps`` in whole tiles of them."""
        # Addresses and strides in bytes: slices of arrays are reference-counted by numba, which costs more than a
        # tile's product.
        given, held, made = address(x) + step * LINE, address(weight) + step * TILE, address(y)
        given_row, held_block, made_row = x.strides[0], weight.strides[0], y.strides[0]
        # For products that are added onto what is there: the row's second half holds what rounding left of the first.
        lower = given_row // 2
        whole = top + (bottom - top) // (2 * ROWS) * 2 * ROWS
        for start in range(first, last, group):
            stop = min(start + group, last)
            # Two tiles of rows by two blocks read each tile from the caches half as often as one by four.
            if whole > top:
                configure(CONFIGS, ROWS)
                for row in range(top, whole, 2 * ROWS):
                    own, out = given + row * given_row, made + row * made_row
                    for block in range(start, stop, 2):
                        at, to = held + block * held_block, out + block * LINE
                        if block + 2 <= stop:
                            two_by_two(x, own, given_row, at, held_block, to, made_row, steps, lower)
                        else:
                            two_by_one(x, own, given_row, at, held_block, to, made_row, steps, lower)
            row = whole
            while row < bottom:
                count = min(ROWS, bottom - row)
                # The last tile of rows may be short. Its height is configured, so that rows beyond the end are neither
                # read nor written.
                configure(CONFIGS, count)
                own, out = given + row * given_row, made + row * made_row
                block = start
                while block + 4 <= stop:
                    at, to = held + block * held_block, out + block * LINE
                    one_by_four(x, own, given_row, at, held_block, to, made_row, steps, lower)
                    block += 4
                while block < stop:
                    at, to = held + block * held_block, out + block * LINE
                    one_by_one(x, own, given_row, at, held_block, to, made_row, steps, lower)
                    block += 1
                row += count
        release()

    return products


_multiply_matrices, _add_matrices = _matrices(False), _matrices(True)


@inner(**INNER)
def multiply(weight: Any, x: Any, y: Any, first: int, last: int) -> None:
    """y of the outputs of the blocks ``first`` to ``last``; arguments as of ``tiles.tile``.

    In the processor's unit for matrices, where there is one and it fits, whatever the number of rows: a row's value is
    to be the same in every step.
    """
    if fits(weight):
        # A tile of packed weights is sixteen steps of one block.
        steps = weight.shape[1] // ROWS
        _multiply_matrices(weight, x, y, first, last, 0, x.shape[0], 0, steps, _GROUP_OF_MATRICES)
    else:
        multiply_by_vectors(weight, x, y, first, last)


@inner(**INNER)
def room_for_shrunk(rows: int, ranks: int, in_tiles: bool) -> Shrunk:
    """Room for what at most ``ranks`` shrink factors give; ``in_tiles``: of products whose expand factors are so."""
    blocks = (ranks + LANES - 1) // LANES
    wide = (ranks + RANKS - 1) // RANKS * RANKS if in_tiles else 0
    pairs = aligned((rows if in_tiles else 0, 2 * wide), np.empty(0, np.int16))
    return Shrunk(np.empty((rows, blocks * LANES), np.float32), pairs, np.zeros(max(wide // LANES, blocks), np.bool_))


@inner(**INNER)
def shrink_rows(product: Product, scale: Floats, x: Any, shrunk: Shrunk, part: int, parts: int) -> None:
    """The ``part``-th of ``parts`` parts of ``shrunk``, which is scale * (x shrink^T); ``scale`` [rows, R or fewer]."""
    rows, ranks = x.shape[0], scale.shape[1]
    blocks = (ranks + LANES - 1) // LANES
    low, pairs, wide = shrunk.numbers, shrunk.pairs, shrunk.pairs.shape[1] // 2
    for block in range(part * blocks // parts, (part + 1) * blocks // parts):
        begin, end = block * LANES, min((block + 1) * LANES, ranks)
        # Which of these sixteen ranks any row has a coefficient for: the others are neither multiplied nor read later.
        used = False
        for t in range(rows):
            for r in range(begin, end):
                used |= scale[t, r] != 0
        shrunk.used[block] = used
        if used:
            multiply(product.shrink, x, low, block, block + 1)
        for t in range(rows):
            for r in range(begin, end):
                # A rank that a row does not ask for leaves no mark on it, not even where it is not a number.
                low[t, r] = low[t, r] * scale[t, r] if used and scale[t, r] != 0 else 0
        if product.tiles.shape[0] > 0:
            # The unit takes bfloat16: each number goes in as two of them, its nearest one and what that leaves.
            _pair_up(low, pairs, begin, end)
            # The tile that the last block begins or ends is read to its end.
            if block == blocks - 1:
                whole = (end + RANKS - 1) // RANKS * RANKS
                pairs[:, end:whole] = 0
                pairs[:, wide + end : wide + whole] = 0
                shrunk.used[blocks : whole // LANES] = False


@inner(**EXACT)
def _pair_up(low: Floats, pairs: Any, begin: int, end: int) -> None:
    """Exact, or what is left of a number would be of one that has not been rounded."""
    wide = pairs.shape[1] // 2
    for t in range(low.shape[0]):
        numbers, nearest = low[t, begin:end], pairs[t, begin:end]
        left = pairs[t, wide + begin : wide + end]
        for r in range(numbers.shape[0]):
            nearest[r] = narrow(numbers[r], nearest[r])
            left[r] = narrow(numbers[r] - widen(nearest[r]), left[r])


@inner(**INNER)
def expand_rows(
    product: Product, ranks: int, shrunk: Shrunk, y: Floats, top: int, bottom: int, start: int, stop: int
) -> None:
    """y[top:bottom, start:stop] += shrunk expand, of the first ``ranks`` ranks.

    Where the factors lie in tiles, ``start`` begins a block of sixteen outputs, and the one that ``stop`` ends is
    written to its own end.
    """
    if product.tiles.shape[0] > 0:
        # In the matrix unit: the two bfloat16 of every number are multiplied with one tile of factors, one after the
        # other, which restores nearly all of float32.
        first, last = start // LANES, (stop + LANES - 1) // LANES
        tiles = (ranks + RANKS - 1) // RANKS if last > first and bottom > top else 0
        tile = 0
        # Runs of tiles that any row asks for; the others would add zeros.
        while tile < tiles:
            step = tile
            while tile < tiles and (shrunk.used[2 * tile] or shrunk.used[2 * tile + 1]):
                tile += 1
            if tile > step:
                count = tile - step
                _add_matrices(product.tiles, shrunk.pairs, y, first, last, top, bottom, step, count, last - first)
            tile += 1
    else:
        for t in range(top, bottom):
            _add_expanded(product.expand, ranks, shrunk.numbers, t, y, start, stop)


@inner(**INNER)
def _add_expanded(expand: Halves, ranks: int, low: Floats, t: int, y: Floats, start: int, stop: int) -> None:
    """y[t, start:stop] += sum_r low[t, r] expand[r, start:stop], r < ``ranks``; zeros cost nothing.

    ``expand`` is [R, out] float16 patterns; ``low`` what the bank's shrink products gave, times the coefficients.
    """
    # Slices: an index that could be negative, for all the compiler knows, keeps a loop from being vectorised.
    added = y[t, start:stop]
    r = 0
    while r < ranks:
        a = low[t, r]
        if r + 3 < ranks:  # four at once: y is read and written less often
            b, c, d = low[t, r + 1], low[t, r + 2], low[t, r + 3]
            if a != 0 or b != 0 or c != 0 or d != 0:
                e, f = expand[r, start:stop], expand[r + 1, start:stop]
                g, h = expand[r + 2, start:stop], expand[r + 3, start:stop]
                for i in range(added.shape[0]):
                    added[i] += a * widen(e[i]) + b * widen(f[i]) + c * widen(g[i]) + d * widen(h[i])
            r += 4
        else:
            if a != 0:
                e = expand[r, start:stop]
                for i in range(added.shape[0]):
                    added[i] += a * widen(e[i])
            r += 1
