"""Dense product with weights packed once for the processor at hand.

Decoding is bound by reading weights, and on a CPU plain ``F.linear`` reads them at a fraction of the memory bandwidth.
oneDNN's blocked layout, made once, reads them several times faster for two rows and more. It also has a property that
plain ``F.linear`` lacks: for two or more rows the value of a row does not depend on which other rows share the call, so
a request gets the same float32 logits whatever shares its batch.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 2
"""oneDNN takes another path (another order of summation) for one row; one row is therefore computed as two."""


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))


@functools.cache
def can_pack() -> bool:
    """Whether the private oneDNN operators exist and give the right product here; probed once."""
    try:
        weight = torch.eye(16)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        rows = torch.arange(32, dtype=torch.float32).view(2, 16)
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        summed = torch.ops.mkldnn._linear_pointwise.binary(rows, rows, packed, None, "add")
        return torch.equal(product, rows) and torch.equal(summed, 2 * rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class PackedLinear:
    """``y = x W^T + b (+ addend)`` for a weight that never changes.

    ``weight`` is [out, in], ``bias`` [out] or None. Activations have the dtype ``activation_dtype``; a bfloat16 weight
    on a CPU without bfloat16 instructions is packed in float32 (its values stay the rounded ones) and read as bfloat16
    only for a single row, where half the bytes are half the time.

    ``exact`` keeps one summation order for every number of rows (what float32 serving promises); without it a single
    row may take the quicker path.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation_dtype: torch.dtype, exact: bool = True) -> None:
        self.out_features, self.in_features = weight.shape
        self.exact = exact
        self._packed: Tensor | None = None
        self._plain: Tensor | None = None
        self._single: Tensor | None = None
        self.bias = None if bias is None else bias.to(activation_dtype)
        on_cpu = weight.device.type == "cpu"
        if on_cpu and activation_dtype in (torch.float32, torch.bfloat16) and can_pack():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(activation_dtype).contiguous())
            if not exact and activation_dtype == torch.float32:
                self._single = weight.contiguous().clone()
        else:
            self._plain = weight.to(activation_dtype).contiguous().clone()

    @property
    def nbytes(self) -> int:
        """Bytes held, all layouts together."""
        held = (self._packed, self._plain, self._single)
        # A packed tensor is opaque; it holds as many elements as the weight, up to padding of its blocks.
        return sum(self.out_features * self.in_features * t.element_size() for t in held if t is not None)

    def __call__(self, rows: Tensor, addend: Tensor | None = None) -> Tensor:
        """``rows`` [n, in] -> [n, out]; ``addend`` [n, out] is added in the same pass."""
        if self._packed is None:
            assert self._plain is not None
            product = F.linear(rows, self._plain, self.bias)
            return product if addend is None else product.add_(addend)
        if rows.shape[0] < MIN_ROWS:
            return self._one_row(rows, addend)
        if addend is None:
            return torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(rows, addend, self._packed, self.bias, "add")

    def _one_row(self, rows: Tensor, addend: Tensor | None) -> Tensor:
        if rows.shape[0] == 0:
            return rows.new_zeros(0, self.out_features)
        if self._single is not None:
            product = torch.mv(self._single, rows[0].to(self._single.dtype)).to(rows.dtype)[None]
            if self.bias is not None:
                product += self.bias
            return product if addend is None else product.add_(addend)
        rows = rows.expand(MIN_ROWS, -1).contiguous()
        if addend is not None:
            addend = addend.expand(MIN_ROWS, -1).contiguous()
        return self(rows, addend)[:1]
