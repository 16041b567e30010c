"""Attention in the unit for matrices and in vectors against the formula in float64, and rows that stand alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

from ladle.kernels.cpu.aligned import aligned_array
from ladle.kernels.cpu.arrays import PagedTokens
from ladle.kernels.cpu.attention.matrix_attention import attend_by_matrices, can_attend
from ladle.kernels.cpu.attention.packed_keys import PackedKeys, room_for_keys
from ladle.kernels.cpu.attention.vector_attention import attend_by_vectors
from ladle.kernels.cpu.compiling.compiler import INNER, one_at_a_time
from ladle.kernels.cpu.matrix_unit import has_matrix_unit

BLOCK = 16
Attend = Callable[..., None]


@numba.njit(**INNER)
def room(paged: Any, kv: Any, threads: int) -> Any:
    return room_for_keys(paged, kv, threads)


@numba.njit(**INNER)
def by_vectors(
    queries: Any, paged: Any, kv: Any, packed: Any, heads: int, scaling: float, window: int, mixed: Any, threads: int
) -> None:
    attend_by_vectors(queries, paged, kv, BLOCK, heads, scaling, window, mixed, threads)


@numba.njit(**INNER)
def by_matrices(
    queries: Any, paged: Any, kv: Any, packed: Any, heads: int, scaling: float, window: int, mixed: Any, threads: int
) -> None:
    attend_by_matrices(queries, paged, kv, packed, BLOCK, heads, scaling, window, mixed, threads)


FORMS = [
    by_vectors,
    pytest.param(by_matrices, marks=pytest.mark.skipif(not has_matrix_unit(), reason="no unit for matrices")),
]


class Case:
    """The last ``chunk`` tokens of sequences of some lengths, each followed by ``candidates`` for its next one."""

    def __init__(self, lengths: tuple[int, ...], chunk: int, heads: tuple[int, int], dim: int, candidates: int) -> None:
        self.heads, kv_heads = heads
        counts = [-(-(length + 1) // BLOCK) for length in lengths]
        spare = sum(counts) + 1
        slots = (spare + 1 + len(lengths) * candidates // BLOCK) * BLOCK
        self.kv = torch.randn(slots, 2, kv_heads, dim).bfloat16()
        order = iter((torch.randperm(sum(counts)) + 1).tolist())
        self.tables = np.zeros((len(lengths), max(counts)), np.int64)
        rows: list[tuple[int, int, int]] = []
        for number, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            own = [next(order) for _ in range(count)]
            self.tables[number, :count] = own
            for position in range(max(0, length - chunk), length):
                rows.append((number, position, own[position // BLOCK] * BLOCK + position % BLOCK))
            for candidate in range(candidates):
                rows.append((number, length, spare * BLOCK + number * candidates + candidate))
        self.rows = np.array(rows)
        self.queries = torch.randn(len(rows), self.heads * dim)
        self.scaling = 1 / math.sqrt(dim)

    def run(self, attend: Attend, window: int, which: Any = slice(None), kept: int | None = None) -> Tensor:
        """``kept``: how many packed segments there is room for, instead of all."""
        rows = self.rows[which]
        none = np.zeros((len(rows), self.kv.shape[3]), np.float32)
        table_rows, positions, slot_mapping = (rows[:, column].copy() for column in range(3))
        mixed = np.zeros((len(rows), self.queries.shape[1]), np.int16)
        queries, kv = self.queries.numpy()[which].copy(), self.kv.view(torch.int16).numpy()
        paged = PagedTokens(none, none, self.tables, table_rows, positions, slot_mapping)
        threads = 2
        packed = room(paged, kv, threads) if attend is by_matrices else None
        if kept is not None:
            packed = PackedKeys(*(aligned_array((threads, kept, *part.shape[2:]), np.int32) for part in packed))
        with one_at_a_time:
            attend(queries, paged, kv, packed, self.heads, self.scaling, window, mixed, threads)
        return torch.from_numpy(mixed).view(torch.bfloat16)

    def expected(self, window: int) -> Tensor:
        kv_heads, dim = self.kv.shape[2:]
        answers = []
        for (table, position, slot), query in zip(self.rows.tolist(), self.queries, strict=True):
            held = [int(self.tables[table, place // BLOCK]) * BLOCK + place % BLOCK for place in range(position)]
            held = [*held, slot][max(0, position - window + 1) if window else 0 :]
            keys, values = (self.kv[held, which].double() for which in (0, 1))
            asked = query.double().view(kv_heads, -1, dim)
            weights = (torch.einsum("hfd,khd->hfk", asked, keys) * self.scaling).softmax(-1)
            answers.append(torch.einsum("hfk,khd->hfd", weights, values).flatten())
        return torch.stack(answers)


@pytest.mark.parametrize("attend", FORMS)
@pytest.mark.parametrize(
    ("lengths", "chunk", "heads", "dim", "window", "candidates"),
    [
        ((5,), 5, (3, 1), 32, 0, 0),
        ((300, 1, 33), 300, (6, 2), 64, 0, 0),
        ((300, 129), 140, (4, 2), 32, 50, 0),
        ((260, 128, 31), 1, (6, 3), 64, 0, 3),
        ((256, 160), 2, (20, 1), 96, 70, 2),
    ],
)
def test_attention_equals_float64_and_rows_stand_alone(
    attend: Attend, lengths: tuple[int, ...], chunk: int, heads: tuple[int, int], dim: int, window: int, candidates: int
) -> None:
    torch.manual_seed(fresh_seed())
    case = Case(lengths, chunk, heads, dim, candidates)
    answers, expected = case.run(attend, window), case.expected(window)
    assert torch.linalg.vector_norm(answers.double() - expected) <= 1e-2 * torch.linalg.vector_norm(expected)
    for row in torch.randperm(len(answers))[:8].tolist():
        assert torch.equal(case.run(attend, window, slice(row, row + 1))[0], answers[row]), row
    some = slice(len(answers) // 3, None)
    assert torch.equal(case.run(attend, window, some), answers[some])


@pytest.mark.skipif(not has_matrix_unit(), reason="no unit for matrices")
def test_room_for_fewer_segments_gives_the_same() -> None:
    torch.manual_seed(fresh_seed())
    case = Case((300, 1, 33), 300, (6, 2), 64, 0)
    assert torch.equal(case.run(by_matrices, 0, kept=1), case.run(by_matrices, 0))


def test_which_pools_the_unit_takes() -> None:
    pool = np.zeros((1, 32, 2, 1, 32), np.int16)
    assert can_attend(pool, 16) == has_matrix_unit()
    assert not can_attend(pool, 8) and not can_attend(pool[..., :16], 16)
    assert not can_attend(pool.astype(np.float32), 16)
