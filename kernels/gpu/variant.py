"""What a Triton kernel is compiled as: the types of its arguments, its constants, and how it is laid out on a GPU.

A launcher picks its configuration by a function of the shapes, and ``variants()`` of the same module names what that
function can pick. So a kernel can be compiled ahead of time, on a machine without a GPU, as it will be launched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

POINTERS = {
    torch.float32: "*fp32:16",
    torch.float16: "*fp16:16",
    torch.bfloat16: "*bf16:16",
    torch.float64: "*fp64:16",
    torch.int32: "*i32:16",
    torch.int64: "*i64:16",
    torch.bool: "*i1:16",
}
"""Dtype of a tensor -> the type of a pointer to it. torch aligns what it allocates to 16 bytes and more."""


@dataclass(frozen=True)
class Variant:
    """One way to compile ``kernel``.

    Attributes:
        name: unique among all variants, the op's name first.
        kernel: a function under ``triton.jit``.
        signature: argument -> type, of every argument that is not in ``constexprs``: ``*fp32``, ``*bf16``, ``i32``,
            ``fp32`` and so on; with ``:16`` behind it where the value (of a pointer: the address) is a multiple of 16.
        constexprs: argument -> value.
        num_warps: of a program.
        num_stages: of the pipelines of its loops.
        fp_fusion: whether a product and a sum may become one operation. Said outright, since Triton's own default
            changed between versions.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    fp_fusion: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What a launch, or a compilation, takes besides the arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": self.fp_fusion}


def dot_type(dtype: torch.dtype) -> Any:
    """The type in which a kernel multiplies matrices of ``dtype``: its own; but float32 for bfloat16 in the
    interpreter, which takes a bfloat16's bits for a number."""
    import triton.language as tl
    from triton import knobs

    if knobs.runtime.interpret and dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]
