"""Weighted sums of weights on a GPU in one pass: every term is read once, the result written once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ladle.kernels.gpu.variant import POINTERS, Variant

AT_ONCE = 8
"""Terms a pass; of more of them the first make a float32 sum that is a term of the next pass."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    out, w0, w1, w2, w3, w4, w5, w6, w7, c0, c1, c2, c3, c4, c5, c6, c7, n, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    # 64 bits: the embeddings of a large model have more elements than 31 bits count.
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    there = at < n - start
    # A pointer and a coefficient per term, told apart at compile time: Triton has no lists of pointers. The sum is
    # formed in float32, in the order of the terms, and rounded once.
    total = tl.load(w0 + start + at, mask=there).to(tl.float32) * c0
    if COUNT > 1:
        total += tl.load(w1 + start + at, mask=there).to(tl.float32) * c1
    if COUNT > 2:
        total += tl.load(w2 + start + at, mask=there).to(tl.float32) * c2
    if COUNT > 3:
        total += tl.load(w3 + start + at, mask=there).to(tl.float32) * c3
    if COUNT > 4:
        total += tl.load(w4 + start + at, mask=there).to(tl.float32) * c4
    if COUNT > 5:
        total += tl.load(w5 + start + at, mask=there).to(tl.float32) * c5
    if COUNT > 6:
        total += tl.load(w6 + start + at, mask=there).to(tl.float32) * c6
    if COUNT > 7:
        total += tl.load(w7 + start + at, mask=there).to(tl.float32) * c7
    tl.store(out + start + at, total.to(out.dtype.element_ty), mask=there)


def merge_weights(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """out = sum_k c_k W_k in float32, in the order of the terms; returns ``out``.

    A merge base + sum_j c_j (W_j - base) is the sum with the share 1 - sum_j c_j of the base as its first term.

    Args:
        out: contiguous; float32, bfloat16 or float16; may be one of the terms.
        terms: (c_k, W_k), at least one; of the shape of ``out``, contiguous, each of any of the three dtypes. No term
            is skipped: 0 times infinity is NaN.

    Raises ValueError for no terms, another shape or dtype, what is not contiguous.
    """
    _check(out, terms)
    # More terms than a kernel takes: the sum so far goes on as a float32 term, so nothing is rounded in between.
    while len(terms) > AT_ONCE:
        part = torch.empty_like(out, dtype=torch.float32)
        _launch(part, terms[:AT_ONCE])
        terms = [(1.0, part), *terms[AT_ONCE:]]
    _launch(out, terms)
    return out


def _launch(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> None:
    if out.numel() == 0:
        return
    # The kernel has eight pointers; those beyond COUNT are never read, and repeat the first so that they are valid.
    padded = [*terms, *[terms[0]] * (AT_ONCE - len(terms))]
    # A flat grid over the elements: shapes do not matter, as all terms are contiguous and of one shape.
    variant = _variant(out.dtype, tuple(tensor.dtype for _, tensor in terms))
    grid = (triton.cdiv(out.numel(), _block(len(terms))),)
    _merge[grid](
        out,
        *(tensor for _, tensor in padded),
        *(float(c) for c, _ in padded),
        out.numel(),
        **variant.constexprs,
        **variant.options,
    )


def _check(out: Tensor, terms: Sequence[tuple[float, Tensor]]) -> None:
    if not terms:
        raise ValueError("terms: none given; at least one is needed")
    for name, tensor in [("out", out), *((f"terms[{k}]", tensor) for k, (_, tensor) in enumerate(terms))]:
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: dtype {tensor.dtype}; float32, bfloat16 or float16 is possible")
        if tensor.shape != out.shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)}, but out has {list(out.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: strides {tensor.stride()}; it must be contiguous")


def _block(count: int) -> int:
    """Elements a program: 16 bytes per thread and load of half-precision terms, twice that while there are few of them
    in flight."""
    return 2048 if count <= 2 else 1024


def _variant(out: torch.dtype, terms: tuple[torch.dtype, ...]) -> Variant:
    count = len(terms)
    padded = [*terms, *[terms[0]] * (AT_ONCE - count)]
    signature = {"out": POINTERS[out]} | {f"w{k}": POINTERS[dtype] for k, dtype in enumerate(padded)}
    signature |= {f"c{k}": "fp32" for k in range(AT_ONCE)} | {"n": "i32"}
    name = f"merge_weights {count} {str(terms[0])[6:]} to {str(out)[6:]}"
    return Variant(name, _merge, signature, {"COUNT": count, "BLOCK": _block(count)}, 4, 1)


def variants() -> list[Variant]:
    """Numbers of terms from the least to the most in bfloat16, the most in the other dtypes and in pairs of them."""
    half, single = torch.bfloat16, torch.float32
    built = [_variant(half, (half,) * count) for count in (1, 2, 3, 5, AT_ONCE)]
    for out, term in ((single, single), (torch.float16, torch.float16), (half, single), (single, half)):
        built.append(_variant(out, (term,) * AT_ONCE))
    return built
