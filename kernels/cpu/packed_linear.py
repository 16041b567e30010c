"""Dense product with weights packed once for the processor at hand.

Decoding is bound by reading weights, and on a CPU plain ``F.linear`` reads them at a fraction of the memory bandwidth.
oneDNN's blocked layout, made once, reads them several times faster for two rows and more. It also has a property that
plain ``F.linear`` lacks: for two or more rows the value of a row does not depend on which other rows share the call, so
a request gets the same float32 logits whatever shares its batch.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_ROWS = 2
"""oneDNN takes another path (another order of summation) for one row; one row is therefore computed as two."""
PIECE = 32
"""Rows of a product in one call where the number of rows must leave no mark: two tiles of AMX."""
_COUNTS = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257)
"""Numbers of rows at which libraries are known to change how they multiply, and their neighbours."""


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AVX512-BF16 or AMX)."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))


@functools.cache
def can_pack() -> bool:
    """Whether the private oneDNN operators exist and give the right product here; probed once."""
    try:
        # Product with the identity: a changed layout or signature of the private operators shows as a wrong or missing
        # answer.
        weight = torch.eye(16)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        x = torch.arange(32, dtype=torch.float32).view(2, 16)
        product = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        summed = torch.ops.mkldnn._linear_pointwise.binary(x, x, packed, None, "add")
        return torch.equal(product, x) and torch.equal(summed, 2 * x)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class PackedLinear:
    """``y = x W^T + b (+ addend)`` for a weight that never changes.

    ``weight`` is [out, in], ``bias`` [out] or None. Activations have the dtype ``activation_dtype``.

    ``reproducible``: the value of a row depends on that row alone, whatever the dtype and the processor. Where the
    library's product does not keep to that by itself, which is tried here on random rows, it is called with ``PIECE``
    rows at a time, the last of them padding; a step of few rows then costs as much as one of ``PIECE``.
    """

    tried: ClassVar[dict[tuple[int, int, torch.dtype, bool, int], bool]] = {}
    """Of which shapes the values of rows were found to stand alone."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        activation_dtype: torch.dtype,
        reproducible: bool = False,
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self._packed: Tensor | None = None
        self._plain: Tensor | None = None
        self.bias = None if bias is None else bias.to(activation_dtype)
        weight = weight.to(activation_dtype)
        on_cpu = weight.device.type == "cpu"
        # Packed in oneDNN's blocked layout where that is possible, which only its own products can read; else kept as
        # it is.
        if on_cpu and activation_dtype in (torch.float32, torch.bfloat16) and can_pack():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        else:
            self._plain = weight.contiguous().clone()
        self.in_pieces = reproducible and not self._rows_stand_alone(activation_dtype)

    @property
    def plain(self) -> Tensor | None:
        """The weight [out, in] in the activations' dtype where it is held as it is, as on a GPU."""
        return self._plain

    @property
    def nbytes(self) -> int:
        """Bytes held. What is packed is opaque: as many elements as the weight, up to padding of its blocks."""
        held = self._packed if self._packed is not None else self._plain
        assert held is not None
        return self.out_features * self.in_features * held.element_size()

    def __call__(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """``x`` [n, in] -> [n, out]; ``addend`` [n, out] is added in the same pass."""
        return self._by_pieces(x, addend) if self.in_pieces else self._product(x, addend)

    def _rows_stand_alone(self, dtype: torch.dtype) -> bool:
        """Whether the values of some rows are those that they have in a call with more of them. Tried once a shape:
        it follows from how the library cuts the product, and a mixture has thousands of one shape."""
        shape = (self.out_features, self.in_features, dtype, self.bias is None, torch.get_num_threads())
        if shape not in self.tried:
            self.tried[shape] = self._try_rows(dtype)
        return self.tried[shape]

    def _try_rows(self, dtype: torch.dtype) -> bool:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * _COUNTS[-1], self.in_features, generator=generator).to(dtype)
        # A row in a call of many against the same row in calls of fewer, bit for bit, at the counts where kernels
        # change.
        whole = self._product(x)
        # From the middle too: the first rows of a call may be computed otherwise than the last.
        return all(
            torch.equal(self._product(x[start : start + count]), whole[start : start + count])
            for count in _COUNTS
            for start in (0, 3)
        )

    def _by_pieces(self, x: Tensor, addend: Tensor | None) -> Tensor:
        count = x.shape[0]
        # Every call has the same shape, so the library cuts it the same way, however many rows there are.
        spare = -count % PIECE
        pieces = F.pad(x, (0, 0, 0, spare)).split(PIECE)
        addends = [None] * len(pieces) if addend is None else F.pad(addend, (0, 0, 0, spare)).split(PIECE)
        made = [self._product(piece, part) for piece, part in zip(pieces, addends, strict=True)]
        return torch.cat(made)[:count] if made else x.new_zeros(0, self.out_features)

    def _product(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        if self._packed is None:
            assert self._plain is not None
            product = F.linear(x, self._plain, self.bias)
            return product if addend is None else product.add_(addend)
        if x.shape[0] < MIN_ROWS:
            return self._one_row(x, addend)
        if addend is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, addend, self._packed, self.bias, "add")

    def _one_row(self, x: Tensor, addend: Tensor | None) -> Tensor:
        if x.shape[0] == 0:
            return x.new_zeros(0, self.out_features)
        # The row twice: the library's path for one row adds up in another order.
        x = x.expand(MIN_ROWS, -1).contiguous()
        if addend is not None:
            addend = addend.expand(MIN_ROWS, -1).contiguous()
        return self._product(x, addend)[:1]
