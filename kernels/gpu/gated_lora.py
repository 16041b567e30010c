"""Low-rank deltas with coefficients of their own in every row, added onto a base product: two launches for a batch.

y += ((x A^T) * c) B^T with one coefficient per row and rank column (the bank of ``merging.bank``). ``shrink`` cuts the
inner dimension into parts that run side by side, for a product with so few outputs would leave a GPU idle; ``expand``
sums the parts, scales, multiplies and adds. How a row is cut and summed follows from the shapes of the weights, not
from the number of rows, and a rank block whose coefficients are all 0 adds nothing: so a row's values do not depend on
what shares its batch, up to what the matrix units do in tiles of another height.

Where the base product's weight has A's rows below its own, as in ``merging.bank``, the first launch is not needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels.gpu.variant import POINTERS, Variant, dot_type
from ladle.kernels.spans import OUTPUTS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PART = 512
"""Inner elements a program of ``shrink`` reads; parts come in powers of two, so that few kernels are compiled."""
MOST_PARTS = 32


@triton.jit
def _shrink(  # type: ignore[no-untyped-def]
    partial,
    x,
    shrink,
    rows,
    ranks,
    inner,
    x_stride,
    shrink_stride,
    part,
    DOT: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    INNER: tl.constexpr,
):
    # Grid: (row tiles, rank tiles, parts of the inner dimension). A program holds its ROWS x RANKS sums in registers.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    split = tl.program_id(2)
    start = split * part
    x_rows = x + row[:, None] * x_stride
    a_rows = shrink + rank[None, :].to(tl.int64) * shrink_stride
    # Split-K: this program sums its part of the inner dimension; ``_expand`` adds the parts.
    there, ranked = row[:, None] < rows, rank[None, :] < ranks
    total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
    for at in range(start, min(start + part, inner), INNER):
        k = at + tl.arange(0, INNER)
        left = tl.load(x_rows + k[None, :], mask=there & (k[None, :] < inner), other=0).to(DOT)
        right = tl.load(a_rows + k[:, None], mask=ranked & (k[:, None] < inner), other=0).to(DOT)
        total = tl.dot(left, right, total, input_precision="ieee")
    to = partial + (split.to(tl.int64) * rows + row[:, None]) * ranks + rank[None, :]
    tl.store(to, total, mask=there & ranked)


@triton.jit
def _expand(  # type: ignore[no-untyped-def]
    out,
    shrunk,
    scale,
    expand,
    spans,
    rows,
    ranks,
    outputs,
    parts,
    out_stride,
    shrunk_stride,
    part_stride,
    scale_stride,
    expand_stride,
    SPANNED: tl.constexpr,
    DOT: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    # Fused q/k/v or gate/up have a block-structured B: outputs of one module read that module's ranks alone.
    first, last = 0, ranks
    if SPANNED:
        first = tl.multiple_of(tl.load(spans + 2 * tl.program_id(1)), 16)
        last = tl.load(spans + 2 * tl.program_id(1) + 1)
    # Grid: (row tiles, tiles of outputs). The ranks of an output tile are walked in blocks, all of them in one program,
    # so that no two programs add to one number.
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there, inside = row[:, None] < rows, column[None, :] < outputs
    b_rows = expand + column[None, :].to(tl.int64) * expand_stride
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(first, last, RANKS):
        rank = start + tl.arange(0, RANKS)
        used = there & (rank[None, :] < last)
        c = tl.load(scale + row[:, None] * scale_stride + rank[None, :], mask=used, other=0).to(tl.float32)
        # A member that no row of this tile asks for is not read.
        if tl.max(tl.max((c != 0).to(tl.int32), axis=1), axis=0) > 0:
            # Reduce the split-K partial sums in the order of the parts, which the shapes alone decide.
            at = shrunk + row[:, None] * shrunk_stride + rank[None, :]
            summed = tl.load(at, mask=used, other=0).to(tl.float32)
            for part in range(1, parts):
                summed += tl.load(at + part * part_stride, mask=used, other=0).to(tl.float32)
            # In the weights' dtype, as the matrix units want it; a 0 stays one whatever it scales.
            gated = (tl.where(c != 0, summed, 0.0) * c).to(expand.dtype.element_ty).to(DOT)
            wanted = (rank[:, None] < last) & inside
            b = tl.load(b_rows + rank[:, None], mask=wanted, other=0).to(DOT)
            total = tl.dot(gated, b, total, input_precision="ieee")
    # Epilogue: add onto the base product, which was rounded to its dtype, and round once more.
    at = out + row[:, None] * out_stride + column[None, :]
    total += tl.load(at, mask=there & inside, other=0).to(tl.float32)
    tl.store(at, total.to(out.dtype.element_ty), mask=there & inside)


def gated_lora(out: Tensor, x: Tensor, shrink: Tensor, scale: Tensor, expand: Tensor) -> Tensor:
    """out += ((x shrink^T) * scale) expand^T in place, sums in float32; returns ``out``.

    Args:
        out: [n, outputs], float32, bfloat16 or float16.
        x: [n, inner], of one dtype with ``shrink`` and ``expand``, one of the same three.
        shrink: [R, inner], the A's of all members; ``expand``: [outputs, R], their scaled B's.
        scale: [n, R] float32, the coefficient of each rank column.

    Rows may lie apart (any stride), elements of a row not. Raises ValueError where shapes, dtypes or strides differ.
    """
    ranks = shrink.shape[0]
    _check("x", x, (out.shape[0], shrink.shape[1]), expand.dtype)
    _check("shrink", shrink, tuple(shrink.shape), expand.dtype)
    if 0 in (ranks, *out.shape):
        return out
    # A product [rows, inner] x [inner, R] has few outputs and a long sum: the parts of the sum are what fills the GPU.
    rows, inner = x.shape
    part = _part(inner)
    parts = triton.cdiv(inner, part)
    # Float32 partial sums of x A^T, one slab per part.
    partial = torch.empty(parts, rows, ranks, dtype=torch.float32, device=x.device)
    variant = _shrink_variant(x.dtype, rows, ranks)
    sizes = variant.constexprs
    grid = (triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(ranks, sizes["RANKS"]), parts)
    _shrink[grid](
        partial,
        x,
        shrink,
        rows,
        ranks,
        inner,
        x.stride(0),
        shrink.stride(0),
        part,
        **variant.constexprs,
        **variant.options,
    )
    return _expand_onto(out, partial, scale, expand, None)


def expand_gated(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor, spans: Tensor | None = None) -> Tensor:
    """out += (shrunk * scale) expand^T in place: what ``gated_lora`` does after x shrink^T, for a base product that has
    made ``shrunk`` [n, R] (any of the dtypes) along with ``out``; the rest is as there.

    ``spans``: where ``expand`` is not zero (see ``spans.spans_of``); what lies outside is not read.
    """
    return _expand_onto(out, shrunk[None], scale, expand, spans)


def _expand_onto(out: Tensor, shrunk: Tensor, scale: Tensor, expand: Tensor, spans: Tensor | None) -> Tensor:
    rows, outputs = out.shape
    ranks = expand.shape[1]
    _check("out", out, (rows, outputs), None)
    _check("shrunk", shrunk[0], (rows, ranks), None)
    _check("scale", scale, (rows, ranks), torch.float32)
    _check("expand", expand, (outputs, ranks), expand.dtype)
    if 0 in (ranks, rows, outputs):
        return out
    if spans is not None and (tuple(spans.shape) != (triton.cdiv(outputs, OUTPUTS), 2) or spans.dtype != torch.int32):
        raise ValueError(f"spans: {spans.dtype} {list(spans.shape)}; int32 of {OUTPUTS} outputs a row is needed")
    # Triton vectorises loads by what it knows of strides; a rank count that is no multiple of 16 takes another variant.
    strides = (out.stride(0), shrunk.stride(1), scale.stride(0), expand.stride(0))
    aligned = all(stride % 16 == 0 for stride in strides)
    variant = _expand_variant(out.dtype, shrunk.dtype, expand.dtype, rows, ranks, spans is not None, aligned)
    sizes = variant.constexprs
    grid = (triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(outputs, sizes["OUTPUTS"]))
    _expand[grid](
        out,
        shrunk,
        scale,
        expand,
        expand if spans is None else spans,
        rows,
        ranks,
        outputs,
        shrunk.shape[0],
        out.stride(0),
        shrunk.stride(1),
        shrunk.stride(0),
        scale.stride(0),
        expand.stride(0),
        **variant.constexprs,
        **variant.options,
    )
    return out


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {list(tensor.shape)}; {list(shape)} follows from the others")
    if tensor.dtype not in ((dtype,) if dtype is not None else DTYPES):
        raise ValueError(f"{name}: dtype {tensor.dtype}; {dtype or 'float32, bfloat16 or float16'} is needed")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: strides {tensor.stride()}; the elements of a row must lie side by side")


def _part(inner: int) -> int:
    """Inner elements a program of ``shrink``: the least power of two times ``PART`` with at most ``MOST_PARTS``."""
    part = PART
    while part * MOST_PARTS < inner:
        part *= 2
    return part


def _rows(rows: int) -> int:
    """Rows a program: the least height that the matrix units take for a small decode batch, else 64, so that a prefill
    reads the weights seldom."""
    return 16 if rows <= 16 else 64


def _ranks(ranks: int, most: int) -> int:
    """Rank columns a program, or a turn of its loop; more than ``most`` would not fit in the registers."""
    return 16 if ranks <= 16 else most


def _shrink_variant(dtype: torch.dtype, rows: int, ranks: int) -> Variant:
    # float32 operands take twice the registers and have no matrix units to go through.
    wide = dtype == torch.float32
    height, columns = _rows(rows) if not wide else 16, _ranks(ranks, 32 if wide else 64)
    signature = {"partial": "*fp32:16", "x": POINTERS[dtype], "shrink": POINTERS[dtype]}
    signature |= {"rows": "i32", "ranks": "i32", "inner": "i32:16"}
    signature |= {"x_stride": "i32:16", "shrink_stride": "i32:16", "part": "i32:16"}
    sizes = {"DOT": dot_type(dtype), "ROWS": height, "RANKS": columns, "INNER": 32 if wide else 64}
    name = f"gated_lora shrink {str(dtype)[6:]} {height}x{columns}"
    return Variant(name, _shrink, signature, sizes, 4, 2 if wide else 3)


def _expand_variant(
    out: torch.dtype,
    shrunk: torch.dtype,
    expand: torch.dtype,
    rows: int,
    ranks: int,
    spanned: bool = False,
    aligned: bool = True,
) -> Variant:
    wide = expand == torch.float32
    # Tile shapes follow from dtype and from which side of 16 rows and ranks lie: there are few kernels to compile.
    height = _rows(rows) if not wide else 16
    columns = _ranks(ranks, 32) if height == 16 else 32
    signature = {"out": POINTERS[out], "shrunk": POINTERS[shrunk], "scale": "*fp32:16", "expand": POINTERS[expand]}
    signature |= {"spans": "*i32:16" if spanned else POINTERS[expand]}
    signature |= {"rows": "i32" if aligned else "i32:16", "ranks": "i32", "outputs": "i32:16", "parts": "i32"}
    strides = ("out_stride", "shrunk_stride", "part_stride", "scale_stride", "expand_stride")
    signature |= dict.fromkeys(strides, "i32:16" if aligned else "i32")
    sizes = {"DOT": dot_type(expand), "ROWS": height, "RANKS": columns, "OUTPUTS": OUTPUTS, "SPANNED": spanned}
    name = f"gated_lora expand {str(shrunk)[6:]} by {str(expand)[6:]} onto {str(out)[6:]} {height}x{columns}"
    name += f"{' spanned' if spanned else ''}{'' if aligned else ' unaligned'}"
    warps = 4 if height == 16 else 8 if aligned else 16
    return Variant(name, _expand, signature, sizes, warps, 1)


def variants() -> list[Variant]:
    """Every size in bfloat16, the largest unaligned too; of the other dtypes the largest."""
    half, largest = torch.bfloat16, (64, 64)
    every = [(16, 16), (16, 64), (64, 16), largest]
    built = [_shrink_variant(half, *size) for size in every]
    built += [_shrink_variant(dtype, *largest) for dtype in (torch.float32, torch.float16)]
    # From partial sums, and from what the base product made.
    sizes = (*every[:2], largest)
    built += [_expand_variant(half, torch.float32, half, *size) for size in sizes]
    built += [_expand_variant(half, half, half, *size, spanned=True) for size in sizes]
    built.append(_expand_variant(half, half, half, *largest, spanned=True, aligned=False))
    built.append(_expand_variant(half, torch.float32, half, *largest, aligned=False))
    for out, shrunk, expand in (
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        (torch.float16, torch.float32, torch.float16),
        (torch.float32, torch.float32, half),
    ):
        built.append(_expand_variant(out, shrunk, expand, *largest, spanned=out == shrunk == expand))
    return built
