"""Attention of one new token a lane over the blocks of a KV pool, on a GPU, every key and value read once.

A lane's context is cut into chunks of ``CHUNK`` tokens that programs of their own attend to, so that one long lane
keeps a whole GPU busy; a second launch puts their results together (split softmax as in Flash-Decoding; FlashAttention,
arXiv 2205.14135, for the running maximum). The cuts are at fixed places of the sequence, so what a lane gets does not
depend on its batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels.gpu.variant import POINTERS, Variant, dot_type

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 256
"""Tokens of a lane's context that one program attends to: at 128 values a head in 16 bits 128 KiB, long enough to hide
what a program costs; its partial result is 1/60 of that."""
MOST_DIM = 256  # the accumulator of 16 heads, and what is multiplied with it, must fit in the registers
_ANYWHERE = 1 << 30


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    out,
    maxima,
    sums,
    query,
    pool,
    table,
    positions,
    scaling,
    softcap,
    window,
    query_stride,
    head_stride,
    table_stride,
    DOT: tl.constexpr,
    CAPPED: tl.constexpr,
    CHUNKED: tl.constexpr,
    FOLDED: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # Grid: (lanes, KV heads, chunks of the context). The query heads that share a KV head (GQA) are the rows of one
    # matrix, so that every key and value is read once for all of them.
    lane, kv_head, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    heads = kv_heads * FOLDED
    # The lane sees the tokens from ``first`` to its own position: the causal mask, and the sliding window.
    position = tl.load(positions + lane).to(tl.int32)
    first = tl.maximum(position - window + 1, 0)
    start, stop = tl.maximum(chunk * CHUNK, first), tl.minimum((chunk + 1) * CHUNK, position + 1)
    if start < stop:
        # Padded to what tl.dot takes: GROUP >= FOLDED heads, WIDTH >= DIM numbers. What is padded is masked.
        member, dim = tl.arange(0, GROUP), tl.arange(0, WIDTH)
        head = kv_head * FOLDED + member
        real = (member[:, None] < FOLDED) & (dim[None, :] < DIM)
        # Padded heads and numbers are zeros in the query, so that they add nothing to a score.
        q = tl.load(query + lane * query_stride + head[:, None] * head_stride + dim[None, :], mask=real, other=0).to(
            DOT
        )
        keys = pool + kv_head * DIM
        best = tl.full((GROUP,), float("-inf"), tl.float32)
        total = tl.zeros((GROUP,), tl.float32)
        mixed = tl.zeros((GROUP, WIDTH), tl.float32)
        # From a multiple of TOKENS: where a window begins does not change how the chunk is cut.
        for begin in range(start // TOKENS * TOKENS, stop, TOKENS):
            token = begin + tl.arange(0, TOKENS)
            seen = (token >= start) & (token < stop)
            # Page-table walk: token -> block -> slot; keys and values of a slot lie side by side.
            block = tl.load(table + lane * table_stride + token // PAGE, mask=seen, other=0).to(tl.int64)
            at = keys + ((block * PAGE + token % PAGE) * (2 * kv_heads * DIM))[:, None] + dim[None, :]
            there = seen[:, None]
            if DIM < WIDTH:
                there = there & (dim[None, :] < DIM)
            k = tl.load(at, mask=there, other=0).to(DOT)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
            if CAPPED:
                # tanh by the exponential of a negative number, which cannot overflow.
                small = tl.exp(-2 * tl.abs(scores / softcap))
                scores = softcap * tl.where(scores < 0, -1.0, 1.0) * (1 - small) / (1 + small)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            # Online softmax (FlashAttention): raise the running maximum and rescale what was summed under the old one.
            higher = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp(scores - higher[:, None])
            shrunk = tl.exp(best - higher)
            total = total * shrunk + tl.sum(weights, axis=1)
            v = tl.load(at + kv_heads * DIM, mask=there, other=0).to(DOT)
            mixed = tl.dot(weights.to(DOT), v, mixed * shrunk[:, None], input_precision="ieee")
            best = higher
        # Split-KV (Flash-Decoding): partial sums and their maxima go to ``_join``; one chunk alone is final.
        if CHUNKED:
            row = (lane * tl.num_programs(2) + chunk) * heads + head
            tl.store(maxima + row, best, mask=member < FOLDED)
            tl.store(sums + row, total, mask=member < FOLDED)
            tl.store(out + row[:, None] * DIM + dim[None, :], mixed, mask=real)
        else:
            to = out + (lane * heads + head[:, None]) * DIM + dim[None, :]
            tl.store(to, (mixed / total[:, None]).to(out.dtype.element_ty), mask=real)


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    out,
    partial,
    maxima,
    sums,
    positions,
    window,
    chunks,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # Grid: (lanes, query heads). The chunks are put together one after the other, in the order of the sequence.
    lane, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    position = tl.load(positions + lane).to(tl.int32)
    first = tl.maximum(position - window + 1, 0)
    dim = tl.arange(0, WIDTH)
    best = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mixed = tl.zeros((WIDTH,), tl.float32)
    # Chunks outside of what is seen were not written.
    for chunk in range(first // CHUNK, position // CHUNK + 1):
        row = (lane * chunks + chunk) * heads + head
        one = tl.arange(0, 1)
        # Rescale both the running sums and this chunk to the greater maximum, then add: log-sum-exp of two parts.
        own = tl.load(maxima + row + one)
        higher = tl.maximum(best, own)
        before, now = tl.exp(best - higher), tl.exp(own - higher)
        total = total * before + tl.load(sums + row + one) * now
        mixed = mixed * before + tl.load(partial + row * DIM + dim, mask=dim < DIM, other=0) * now
        best = higher
    tl.store(out + (lane * heads + head) * DIM + dim, (mixed / total).to(out.dtype.element_ty), mask=dim < DIM)


def paged_attention(
    query: Tensor,
    pool: Tensor,
    table: Tensor,
    positions: Tensor,
    page: int,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(query keys^T * scaling)) values over what each lane sees of its context; float32 sums.

    Args:
        query: [lanes, heads, d], float32, bfloat16 or float16, d <= 256; the elements of a head side by side.
        pool: [slots, 2, kv heads, d] of the dtype of ``query``, contiguous; keys at 0 and values at 1 of the second
            axis. Query heads that share a key/value head follow each other.
        table: [lanes, blocks] int64, the blocks of ``page`` slots that hold a lane's tokens in order.
        positions: [lanes] int64, the place of a lane's new token, which the pool holds already: it sees the tokens at
            and before that place, with ``window`` only the last ``window`` of them. A place beyond the table's blocks
            is not looked for.
        page: slots per block; a power of two.
        softcap: scores become softcap * tanh(score / softcap) where it is given.

    Returns [lanes, heads, d] contiguous. Raises ValueError for other shapes, dtypes or strides.
    """
    _check(query, pool, table, positions, page)
    lanes, heads, dim = query.shape
    out = torch.empty(lanes, heads, dim, dtype=query.dtype, device=query.device)
    if 0 in out.shape:
        return out
    kv_heads = pool.shape[2]
    # The grid covers what the table could hold: reading the lanes' true lengths would wait for the device. Programs
    # beyond a lane's end leave at once.
    chunks = triton.cdiv(table.shape[1] * page, CHUNK)
    # One chunk needs no second launch: its program divides by the sum itself.
    variant = _attend_variant(query.dtype, heads // kv_heads, dim, page, chunks > 1, softcap is not None)
    # Partial sums of several chunks stay in float32 until they are joined.
    target = out
    maxima = sums = out  # not written where one chunk is all
    if chunks > 1:
        target = torch.empty(lanes, chunks, heads, dim, dtype=torch.float32, device=query.device)
        maxima, sums = torch.empty(2, lanes, chunks, heads, dtype=torch.float32, device=query.device)
    seen = min(window or _ANYWHERE, _ANYWHERE)
    _attend[(lanes, kv_heads, chunks)](
        target,
        maxima,
        sums,
        query,
        pool,
        table,
        positions,
        scaling,
        softcap or 0.0,
        seen,
        query.stride(0),
        query.stride(1),
        table.stride(0),
        **variant.constexprs,
        **variant.options,
    )
    if chunks > 1:
        joining = _join_variant(query.dtype, dim)
        _join[(lanes, heads)](
            out, target, maxima, sums, positions, seen, chunks, **joining.constexprs, **joining.options
        )
    return out


def _check(query: Tensor, pool: Tensor, table: Tensor, positions: Tensor, page: int) -> None:
    if query.ndim != 3 or query.dtype not in DTYPES or not 0 < query.shape[2] <= MOST_DIM or query.stride(2) != 1:
        layout = f"{query.dtype} {list(query.shape)}, strides {query.stride()}"
        raise ValueError(f"query: {layout}; float32, bfloat16 or float16 [lanes, heads, d <= {MOST_DIM}] is possible")
    lanes, heads, dim = query.shape
    if pool.ndim != 4 or pool.shape[1] != 2 or pool.shape[3] != dim or heads % pool.shape[2]:
        raise ValueError(f"pool: shape {list(pool.shape)}; [slots, 2, a divisor of {heads}, {dim}] is needed")
    if pool.dtype != query.dtype or not pool.is_contiguous():
        raise ValueError(f"pool: {pool.dtype}, strides {pool.stride()}; contiguous {query.dtype} is needed")
    if table.ndim != 2 or table.shape[0] != lanes or table.dtype != torch.int64 or table.stride(1) != 1:
        raise ValueError(f"table: {table.dtype} {list(table.shape)}; int64 [{lanes}, blocks] is needed")
    if tuple(positions.shape) != (lanes,) or positions.dtype != torch.int64 or not positions.is_contiguous():
        raise ValueError(f"positions: {positions.dtype} {list(positions.shape)}; contiguous int64 [{lanes}] is needed")
    if page < 1 or page & (page - 1):
        raise ValueError(f"page: {page}; a power of two is needed")


def _attend_variant(dtype: torch.dtype, folded: int, dim: int, page: int, chunked: bool, capped: bool) -> Variant:
    """Keys a turn: as many as fit in the registers of any of the GPUs. The matrix units take 16 query heads at once;
    fewer are padded, which costs nothing while reading keys is what takes the time."""
    # tl.dot takes sizes from 16 on that are powers of two: the head and the group of query heads are padded to that.
    width = max(16, triton.next_power_of_2(dim))
    group = max(16, triton.next_power_of_2(folded))
    wide = dtype == torch.float32
    tokens = (16 if width > 128 else 32) if wide else 32 if width > 64 or capped else 64
    signature = {
        "out": "*fp32:16" if chunked else POINTERS[dtype],
        "maxima": "*fp32:16" if chunked else POINTERS[dtype],
        "sums": "*fp32:16" if chunked else POINTERS[dtype],
        "query": POINTERS[dtype],
        "pool": POINTERS[dtype],
        "table": "*i64:16",
        "positions": "*i64:16",
        "scaling": "fp32",
        "softcap": "fp32",
        "window": "i32",
    }
    signature |= {"query_stride": "i32:16", "head_stride": "i32:16", "table_stride": "i32"}
    sizes = {
        "DOT": dot_type(dtype),
        "CAPPED": capped,
        "CHUNKED": chunked,
        "FOLDED": folded,
        "GROUP": group,
        "DIM": dim,
        "WIDTH": width,
        "PAGE": page,
        "TOKENS": tokens,
        "CHUNK": CHUNK,
    }
    kind = f"{'chunks' if chunked else 'whole'}{' capped' if capped else ''}"
    name = f"paged_attention {kind} {str(dtype)[6:]} {folded}x{dim}"
    warps = 8 if width > 128 or (wide and width > 64) else 4
    return Variant(name, _attend, signature, sizes, warps, 3 if width <= 128 and not wide else 2)


def _join_variant(dtype: torch.dtype, dim: int) -> Variant:
    signature = {"out": POINTERS[dtype], "partial": "*fp32:16", "maxima": "*fp32:16", "sums": "*fp32:16"}
    signature |= {"positions": "*i64:16", "window": "i32", "chunks": "i32"}
    sizes = {"DIM": dim, "WIDTH": triton.next_power_of_2(dim), "CHUNK": CHUNK}
    return Variant(f"paged_attention join {str(dtype)[6:]} {dim}", _join, signature, sizes, 1, 1)


def variants() -> list[Variant]:
    """Head sizes and shared heads that models have, whole and in chunks; the largest in every dtype, capped."""
    half, single, other = torch.bfloat16, torch.float32, torch.float16
    return [
        _attend_variant(half, 4, 128, 16, True, False),
        _attend_variant(half, 8, 256, 16, True, True),
        _attend_variant(half, 3, 64, 16, False, False),
        _attend_variant(half, 16, 96, 16, False, False),
        _attend_variant(half, 2, 32, 16, True, True),
        _attend_variant(single, 8, 256, 16, True, True),
        _attend_variant(single, 3, 64, 16, False, False),
        _attend_variant(single, 4, 96, 16, True, True),
        _attend_variant(single, 4, 128, 16, True, False),
        _attend_variant(single, 16, 128, 16, True, True),
        _attend_variant(other, 7, 128, 16, False, False),
        _join_variant(half, 128),
        _join_variant(single, 256),
        _join_variant(other, 96),
    ]
