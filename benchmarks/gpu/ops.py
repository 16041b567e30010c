"""Each op against plain torch, and against the time that reading its arguments and writing its result must take.

What is fast enough is a share of the copy bandwidth of the same run: ``floor_us`` are the op's bytes at that speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ladle.benchmarks.gpu.case import OpCase
from ladle.benchmarks.gpu.device_timer import DeviceTimer, nbytes
from ladle.benchmarks.gpu.step_cases import step_cases
from ladle.kernels import dispatch
from ladle.kernels.reference import model as model_reference

PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """What the ops are measured on; ``tiny`` is for tests of this harness."""

    weight: tuple[int, int] = (14336, 4096)
    members: tuple[int, ...] = (3, 8)
    linear: tuple[int, int] = (6144, 4096)
    rows: tuple[int, ...] = (1, 16, 128, 2048)
    ranks: tuple[int, ...] = (48, 256)
    heads: tuple[int, int, int] = (32, 8, 128)
    contexts: tuple[tuple[int, int], ...] = ((1, 512), (1, 32768), (16, 2048), (64, 512), (128, 2048))
    vocabularies: tuple[int, ...] = (32000, 128256, 262144)
    batches: tuple[int, ...] = (8, 64)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)

    @classmethod
    def tiny(cls) -> Sizes:
        """A few elements of everything."""
        return cls((8, 12), (3,), (24, 16), (1, 5), (4,), (4, 2, 8), ((2, 40),), (90,), (4,), (torch.float32,))


def cases(device: torch.device, sizes: Sizes) -> Iterator[OpCase]:
    """One after the other, so that the memory of one is free before the next is made."""
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    for dtype in sizes.dtypes:
        for count in sizes.members:
            yield _merge(count, sizes, dtype, draw)
        for rows in sizes.rows:
            for ranks in sizes.ranks:
                yield from _gated(rows, ranks, sizes, dtype, draw)
            yield _vectors(rows, sizes, dtype, draw)
        for lanes, context in sizes.contexts:
            yield _attention(lanes, context, sizes, dtype, draw)
        yield from step_cases(device, dtype, sizes.vocabularies, sizes.batches)


def _merge(count: int, sizes: Sizes, dtype: torch.dtype, draw: Callable[..., Tensor]) -> OpCase:
    terms = [(1.0 / (index + 1), draw(*sizes.weight, dtype=dtype)) for index in range(count)]
    out = torch.empty_like(terms[0][1])
    return OpCase(
        "merge_weights",
        f"{count} x {list(sizes.weight)}",
        dtype,
        nbytes(out, *(weight for _, weight in terms)),
        lambda: dispatch.merge_weights(out, terms),
        lambda: model_reference.merge_weights(out, terms),
    )


def _vectors(rows: int, sizes: Sizes, dtype: torch.dtype, draw: Callable[..., Tensor]) -> OpCase:
    # As many steering vectors as there are members, of which each row has one.
    count, hidden = max(sizes.members), sizes.weight[1]
    x, vectors = draw(rows, hidden, dtype=dtype), draw(count, hidden)
    chosen = torch.arange(rows, device=x.device)[:, None] % count == torch.arange(count, device=x.device)
    amounts = chosen.float()
    return OpCase(
        "add_vectors",
        f"{rows} x {hidden}, {count} vectors",
        dtype,
        nbytes(x, x, amounts, vectors[: min(rows, count)]),
        lambda: dispatch.add_vectors(x, amounts, vectors),
        lambda: model_reference.add_vectors(x, amounts, vectors),
    )


def _gated(rows: int, ranks: int, sizes: Sizes, dtype: torch.dtype, draw: Callable[..., Tensor]) -> Iterator[OpCase]:
    outputs, inner = sizes.linear
    product = draw(rows, outputs + ranks, dtype=dtype)
    out, shrunk = product[:, :outputs], product[:, outputs:]
    x, shrink, expand = (
        draw(rows, inner, dtype=dtype),
        draw(ranks, inner, dtype=dtype),
        draw(outputs, ranks, dtype=dtype),
    )
    scale = draw(rows, ranks)
    size = f"{rows} rows, {inner} to {outputs}, rank {ranks}"
    # ``out`` is read and written.
    yield OpCase(
        "expand_gated",
        size,
        dtype,
        nbytes(out, out, shrunk, scale, expand),
        lambda: dispatch.expand_gated(out, shrunk, scale, expand),
        lambda: model_reference.expand_gated(out, shrunk, scale, expand),
    )
    yield OpCase(
        "gated_lora",
        size,
        dtype,
        nbytes(out, out, x, shrink, scale, expand),
        lambda: dispatch.gated_lora(out, x, shrink, scale, expand),
        lambda: model_reference.gated_lora(out, x, shrink, scale, expand),
    )


def _attention(lanes: int, context: int, sizes: Sizes, dtype: torch.dtype, draw: Callable[..., Tensor]) -> OpCase:
    heads, kv_heads, dim = sizes.heads
    blocks = -(-context // PAGE)
    pool = draw(lanes * blocks * PAGE, 2, kv_heads, dim, dtype=dtype)
    table = torch.randperm(lanes * blocks, device="cpu").view(lanes, blocks).to(pool.device)
    positions = torch.full((lanes,), context - 1, device=pool.device)
    query = draw(lanes, heads, dim, dtype=dtype)
    scaling = dim**-0.5

    def eager() -> Tensor:
        rows = pool.view(lanes * blocks, -1).index_select(0, table.view(-1))
        keys, values = rows.view(lanes, blocks * PAGE, 2, kv_heads, dim).permute(2, 0, 3, 1, 4)
        seen = torch.arange(blocks * PAGE, device=pool.device) <= positions[:, None]
        folded = query.view(lanes, kv_heads, heads // kv_heads, dim)
        mask = seen[:, None, None].expand(-1, kv_heads, heads // kv_heads, -1)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)

    return OpCase(
        "paged_attention",
        f"{lanes} lanes of {context}, {heads}/{kv_heads} heads of {dim}",
        dtype,
        2 * lanes * context * kv_heads * dim * dtype.itemsize + 2 * nbytes(query),
        lambda: dispatch.paged_attention(query, pool, table, positions, PAGE, scaling),
        eager,
    )


@torch.inference_mode()
def run(timer: DeviceTimer, sizes: Sizes, repeats: int = 20) -> Iterator[dict[str, object]]:
    """A row a case: microseconds of the kernel and of plain torch, and what the bandwidth allows."""
    bandwidth = timer.copy_bandwidth()
    for case in cases(timer.device, sizes):
        kernel, eager = timer.seconds(case.kernel, repeats), timer.seconds(case.eager, repeats)
        floor = case.nbytes / bandwidth
        yield {
            "op": case.op,
            "size": case.size,
            "dtype": str(case.dtype).removeprefix("torch."),
            "kernel_us": round(1e6 * kernel, 3),
            "torch_us": round(1e6 * eager, 3),
            "times_faster": round(eager / kernel, 2),
            "floor_us": round(1e6 * floor, 3),
            "share_of_copy": round(floor / kernel, 3),
            "copy_GB_per_s": round(bandwidth / 1e9, 1),
        }
