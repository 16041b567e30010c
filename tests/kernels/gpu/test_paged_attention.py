"""paged_attention against float64."""

import math

import pytest
import torch
from kernel_device import MARKS
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from ladle.kernels.gpu import paged_attention as module
from ladle.kernels.reference import model as model_reference

PAGE = 16
pytestmark = MARKS

BOUND = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Error of a mixed value, values being of size one: rounding of the result, of the weights that values are multiplied
by, and in float32 of the sums."""


def _pool(
    lengths: list[int], heads: int, kv_heads: int, dim: int, generator: torch.Generator, spare: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, pool, table and positions in float64; a lane's blocks lie anywhere, and what no lane owns is NaN."""
    width = max((math.ceil(length / PAGE) for length in lengths), default=1) + spare
    owned = sum(math.ceil(length / PAGE) for length in lengths)
    order = (torch.randperm(owned, generator=generator) + 1).tolist()
    table = torch.zeros(len(lengths), width, dtype=torch.int64)  # block 0 is nobody's, as in the engine
    pool = torch.full(((owned + 1) * PAGE, 2, kv_heads, dim), torch.nan, dtype=torch.float64)
    for lane, length in enumerate(lengths):
        for index in range(math.ceil(length / PAGE)):
            block = order.pop()
            table[lane, index] = block
            filled = min(PAGE, length - index * PAGE)
            values = torch.randn(filled, 2, kv_heads, dim, generator=generator, dtype=torch.float64)
            pool[block * PAGE : block * PAGE + filled] = values
    query = torch.randn(len(lengths), heads, dim, generator=generator, dtype=torch.float64)
    return query, pool, table, torch.tensor(lengths, dtype=torch.int64) - 1


def _check(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    query, pool, table, positions = inputs
    query, pool = query.to(dtype), pool.to(dtype)
    options = (PAGE, 1.5 * query.shape[-1] ** -0.5, window, softcap)
    got = module.paged_attention(query, pool, table, positions, *options)
    assert got.dtype == dtype and got.shape == query.shape
    expected = _expected(query.double(), pool.double(), table, positions, *options)
    size = max(1.0, float(expected.abs().max()))
    assert (got.double() - expected).abs().max() <= BOUND[dtype] * size
    in_torch = model_reference.paged_attention(query.double(), pool.double(), table, positions, *options)
    assert torch.allclose(in_torch, expected, rtol=1e-12, atol=1e-12)


def _expected(
    query: Tensor,
    pool: Tensor,
    table: Tensor,
    positions: Tensor,
    page: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Lane by lane and head by head, from the definition."""
    out = torch.empty_like(query)
    folded = query.shape[1] // pool.shape[2]
    for lane, position in enumerate(positions.tolist()):
        first = 0 if window is None else max(0, position - window + 1)
        slots = [int(table[lane, at // page]) * page + at % page for at in range(first, position + 1)]
        for head in range(query.shape[1]):
            keys, values = pool[slots, 0, head // folded], pool[slots, 1, head // folded]
            scores = keys @ query[lane, head] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[lane, head] = torch.softmax(scores, dim=0) @ values
    return out


def test_contexts_at_the_edges_of_blocks_and_chunks(generator: torch.Generator) -> None:
    # One token; a block short of one, full, one over; a turn's; a chunk's; two chunks'.
    lengths = [1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 512, 513]
    _check(_pool(lengths, 4, 2, 16, generator))


def test_one_chunk_is_all(generator: torch.Generator) -> None:
    _check(_pool([1, 16, 33, 240], 6, 2, 32, generator))


@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (9, 3), (17, 1), (32, 2)], ids=str)
@pytest.mark.parametrize("dim", [8, 64, 80])
def test_heads(heads: tuple[int, int], dim: int, generator: torch.Generator) -> None:
    _check(_pool([40, 3], *heads, dim, generator))


@pytest.mark.parametrize("dtype", module.DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, generator: torch.Generator) -> None:
    _check(_pool([300, 17], 8, 2, 128, generator), dtype)
    _check(_pool([40], 4, 2, 256, generator), dtype, softcap=5.0)


@pytest.mark.parametrize("window", [1, 16, 100, 256, 300, 10_000])
def test_windows(window: int, generator: torch.Generator) -> None:
    _check(_pool([1, 100, 256, 600], 2, 1, 16, generator), window=window)


def test_a_cap_on_scores(generator: torch.Generator) -> None:
    query, *rest = _pool([5, 290], 4, 2, 16, generator)
    _check((50 * query, *rest), softcap=20.0, window=280)


def test_a_lane_does_not_depend_on_the_others(generator: torch.Generator) -> None:
    query, pool, table, positions = _pool([200, 400, 30], 4, 2, 16, generator)
    query, pool = query.float(), pool.float()
    together = module.paged_attention(query, pool, table, positions, PAGE, 0.25)
    for lane, blocks in ((0, 13), (1, 25), (2, 2)):  # in a table of its own, no wider than it needs
        own = slice(lane, lane + 1)
        alone = module.paged_attention(query[own], pool, table[own, :blocks], positions[own], PAGE, 0.25)
        assert torch.equal(together[own], alone)


def test_queries_that_are_a_part_of_a_wider_product(generator: torch.Generator) -> None:
    query, pool, table, positions = _pool([20, 35], 4, 2, 16, generator)
    wide = torch.cat((query, torch.full((2, 4, 16), torch.nan, dtype=torch.float64)), dim=1)[:, :4]
    assert not wide.is_contiguous()
    _check((wide, pool, table, positions))


def test_no_lanes(generator: torch.Generator) -> None:
    query, pool, table, positions = _pool([], 4, 2, 16, generator)
    assert module.paged_attention(query.float(), pool.float(), table, positions, PAGE, 1.0).shape == (0, 4, 16)


def test_what_does_not_fit_is_named(generator: torch.Generator) -> None:
    query, pool, table, positions = _pool([20, 35], 4, 2, 16, generator)
    query, pool = query.float(), pool.float()
    with pytest.raises(ValueError, match="query: torch.float64"):
        module.paged_attention(query.double(), pool, table, positions, PAGE, 1.0)
    with pytest.raises(ValueError, match=r"pool: shape .*a divisor of 3, 16\]"):
        module.paged_attention(query[:, :3], pool, table, positions, PAGE, 1.0)
    with pytest.raises(ValueError, match="pool: torch.float16.*contiguous torch.float32"):
        module.paged_attention(query, pool.half(), table, positions, PAGE, 1.0)
    with pytest.raises(ValueError, match="table: torch.int32"):
        module.paged_attention(query, pool, table.int(), positions, PAGE, 1.0)
    with pytest.raises(ValueError, match="positions: torch.int64"):
        module.paged_attention(query, pool, table, positions[:1], PAGE, 1.0)
    with pytest.raises(ValueError, match="page: 12"):
        module.paged_attention(query, pool, table, positions, 12, 1.0)
