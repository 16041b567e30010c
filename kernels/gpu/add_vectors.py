"""Steering vectors added to hidden states on a GPU: one launch a layer, whatever each row has of which vector.

A vector of which a row has 0 is not read for it. A row is summed by itself, vector after vector, so that its values do
not depend on what shares its batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels.gpu.variant import POINTERS, Variant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024
"""Numbers of a row that a program adds to."""


@triton.jit
def _add(  # type: ignore[no-untyped-def]
    out, x, amounts, vectors, count, hidden, x_stride, amounts_stride, vectors_stride, BLOCK: tl.constexpr
):
    # One program per row and block of columns: the hidden state stays in registers, in float32, while the vectors that
    # this row has some of are added one after the other. The others are not read.
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    total = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    for vector in range(0, count):
        amount = tl.load(amounts + row * amounts_stride + vector)
        if amount != 0:
            total += amount * tl.load(vectors + column, mask=inside, other=0)
        vectors += vectors_stride
    tl.store(out + row * hidden + column, total.to(out.dtype.element_ty), mask=inside)


def add_vectors(x: Tensor, amounts: Tensor, vectors: Tensor) -> Tensor:
    """x + amounts vectors, each row summed in float32 and rounded once; a new tensor.

    Args:
        x: [n, hidden], float32, bfloat16 or float16.
        amounts: [n, vectors] float32.
        vectors: [vectors, hidden] float32.

    Raises ValueError for other shapes or dtypes, rows that are not contiguous.
    """
    _check(x, amounts, vectors)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # A grid of no programs cannot be launched.
    if x.numel() == 0:
        return out
    # Grid: (rows, blocks of columns). Strides are passed, so that x may be a view of a wider buffer.
    variant = _variant(x.dtype)
    grid = (x.shape[0], triton.cdiv(x.shape[1], BLOCK))
    _add[grid](
        out,
        x,
        amounts,
        vectors,
        vectors.shape[0],
        x.shape[1],
        x.stride(0),
        amounts.stride(0),
        vectors.stride(0),
        **variant.constexprs,
        **variant.options,
    )
    return out


def _check(x: Tensor, amounts: Tensor, vectors: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(f"x: dtype {x.dtype}; float32, bfloat16 or float16 is possible")
    wanted = {"amounts": (x.shape[0], vectors.shape[0]), "vectors": (vectors.shape[0], x.shape[1])}
    for name, tensor in (("amounts", amounts), ("vectors", vectors)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: dtype {tensor.dtype}; float32 is needed")
        if tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"{name}: shape {list(tensor.shape)}, but {list(wanted[name])} is needed")
    for name, tensor in (("x", x), ("amounts", amounts), ("vectors", vectors)):
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name}: strides {tensor.stride()}; its rows must be contiguous")


def _variant(dtype: torch.dtype) -> Variant:
    signature = {"out": POINTERS[dtype], "x": POINTERS[dtype], "amounts": "*fp32", "vectors": "*fp32"}
    signature |= dict.fromkeys(("count", "hidden", "x_stride", "amounts_stride", "vectors_stride"), "i32")
    # Not fused, as the plain sum is not: with two roundings a term both give the same.
    return Variant(f"add_vectors {str(dtype)[6:]}", _add, signature, {"BLOCK": BLOCK}, 4, 1, fp_fusion=False)


def variants() -> list[Variant]:
    """The kernel for every dtype of the hidden states."""
    return [_variant(dtype) for dtype in DTYPES]
