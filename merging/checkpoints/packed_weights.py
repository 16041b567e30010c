"""Weights that a checkpoint holds in fewer bits, layout by layout: which tensors make one, and what they come to.

The layouts are those that their own packages write; each was tried against them (``tests/conformance``). Products are
made in float32 and rounded once, as those packages do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AutoAWQ: in which of the eight places of a word the k-th of eight outputs lies."""


@dataclass(frozen=True)
class Packed:
    """One weight.

    Attributes:
        parts: names of its tensors by what they are.
        shape: of the weight.
        decode: gives the weight in float32 from its tensors.
        dtype: what the weight is rounded to; None for the checkpoint's own.
    """

    parts: Mapping[str, str]
    shape: tuple[int, ...]
    decode: Callable[[Tensors], Tensor]
    dtype: torch.dtype | None = None


def unpack(words: Tensor, bits: int, count: int, dim: int) -> Tensor:
    """Unsigned numbers of ``bits`` bits, the lowest first, of int32 ``words`` along ``dim``; ``count`` of them."""
    # The mask after the shift makes the arithmetic shift of negative words harmless.
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    moved = words.movedim(dim, -1)
    integers = (moved.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return integers.flatten(-2)[..., :count].movedim(-1, dim)


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    """``scale`` of blocks of a weight of ``shape`` as one number a value, over its last two dimensions.

    ``block``: the blocks' size; None where they divide the weight evenly, or the scale is one number.
    """
    # One scale for all, or one per output, which becomes a column: both broadcast by themselves.
    if scale.ndim < 2:
        return scale.reshape(-1, 1) if scale.ndim == 1 and scale.numel() == shape[-2] else scale
    for dim, size in ((-2, shape[-2]), (-1, shape[-1])):
        if scale.shape[dim] not in (1, size):
            # The last block may be short: as many are repeated as cover the dimension, and the rest is cut off.
            each = block[dim] if block is not None else -(-size // scale.shape[dim])
            scale = scale.repeat_interleave(each, dim=dim).narrow(dim, 0, size)
    return scale


def gptq(bits: int, plain_zeros: bool) -> Callable[[Tensors], Tensor]:
    """GPTQ: ``qweight`` [in * bits / 32, out], ``qzeros`` [groups, out * bits / 32], ``scales`` [groups, out], and
    ``g_idx`` [in], the group of each input, where they are not in turn. ``plain_zeros``: as gptq_v2 has them; else they
    are stored less 1."""

    def decode(tensors: Tensors) -> Tensor:
        # w = scale (q - zero), a scale and a zero for every group of inputs; act-order puts inputs into groups that are
        # not runs.
        scales, inputs = tensors["scales"], tensors["qweight"].shape[0] * 32 // bits
        in_turn = torch.arange(inputs) // -(-inputs // len(scales))
        groups = tensors["g_idx"].long() if "g_idx" in tensors else in_turn
        integers = unpack(tensors["qweight"], bits, inputs, 0)
        zeros = unpack(tensors["qzeros"], bits, scales.shape[1], 1)
        if not plain_zeros:
            # Stored less 1, with wrap-around: the largest number means a zero point of 0.
            zeros = (zeros + 1) & ((1 << bits) - 1)
        return ((integers - zeros[groups]).float() * scales.float()[groups]).T

    return decode


def awq(tensors: Tensors) -> Tensor:
    """AWQ, version gemm: ``qweight`` [in, out / 8], ``qzeros`` [groups, out / 8], ``scales`` [groups, out]."""
    scales = tensors["scales"]
    inputs, outputs = tensors["qweight"].shape[0], scales.shape[1]

    def ordered(words: Tensor) -> Tensor:
        return unpack(words, 4, outputs, 1).unflatten(1, (-1, 8))[:, :, list(_AWQ_ORDER)].flatten(1)

    # Packed along the outputs, eight of them interleaved in a word; zeros are packed alike.
    each = inputs // scales.shape[0]
    integers = ordered(tensors["qweight"]) - ordered(tensors["qzeros"]).repeat_interleave(each, dim=0)
    return (integers.float() * scales.float().repeat_interleave(each, dim=0)).T


def packed_ints(bits: int, block: tuple[int, int] | None) -> Callable[[Tensors], Tensor]:
    """compressed-tensors, pack-quantized: ``packed`` int32 [out, in * bits / 32] of numbers above their least, and
    ``scale`` [out, groups]. There may be ``zero`` (packed along the outputs) and ``g_idx``, the group of each input."""

    def decode(tensors: Tensors) -> Tensor:
        outputs, inputs = (int(size) for size in tensors["shape"])
        # Signed numbers are stored with an offset, so that unpacking them needs no sign.
        least = 1 << (bits - 1)
        integers = unpack(tensors["packed"], bits, inputs, 1) - least
        scale = tensors["scale"].float()
        zero = tensors.get("zero")
        if zero is not None:
            packed = zero.dtype == torch.int32 and tuple(zero.shape) != tuple(scale.shape)
            zero = unpack(zero, bits, outputs, 0) - least if packed else zero
        if (order := tensors.get("g_idx")) is not None and scale.shape[1] > 1:
            scale = scale[:, order.long()]
            zero = None if zero is None else zero[:, order.long()]
        shape = (outputs, inputs)
        shifted = integers.float() if zero is None else integers.float() - spread(zero.float(), shape, block)
        return shifted * spread(scale, shape, block)

    return decode


def scaled(block: tuple[int, int] | None) -> Callable[[Tensors], Tensor]:
    """Numbers of one byte each, float8 or int8, times ``scale``: one number, one per output or one per block; less
    ``zero`` where there is one."""

    def decode(tensors: Tensors) -> Tensor:
        elements, scale = tensors["weight"].float(), tensors["scale"].float()
        shape = tuple(elements.shape)
        zero = tensors.get("zero")
        shifted = elements if zero is None else elements - spread(zero.float(), shape, block)
        return shifted * spread(scale, shape, block)

    return decode


def eight_bits(tensors: Tensors) -> Tensor:
    """bitsandbytes, 8 bits: int8 [out, in] times ``scale`` [out] / 127."""
    return tensors["weight"].float() * (tensors["scale"].float() / 127.0)[:, None]


@dataclass(frozen=True)
class FourBits:
    """What bitsandbytes writes beside four-bit numbers, as JSON in a tensor of bytes.

    Attributes:
        shape: of the weight, [out, in].
        block: numbers that share a scale.
        dtype: of the weight before it was quantised.
        nested: scales that share a scale of their own; 0 where scales are not quantised.
        offset: what is added to scales that are.
    """

    shape: tuple[int, ...]
    block: int
    dtype: torch.dtype
    nested: int
    offset: float

    @classmethod
    def read(cls, state: Tensor) -> FourBits:
        """Raises ValueError, KeyError or TypeError for what is no such state."""
        document: dict[str, Any] = json.loads(bytes(state.to(torch.uint8).tolist()))
        dtype = getattr(torch, str(document["dtype"]).removeprefix("torch."))
        return cls(
            tuple(int(size) for size in document["shape"]), int(document["blocksize"]), dtype,
            int(document.get("nested_blocksize") or 0), float(document.get("nested_offset") or 0.0),
        )  # fmt: skip

    def decode(self, tensors: Tensors) -> Tensor:
        """``weight``: two numbers a byte, the first one above, each a place in ``quant_map``; times ``absmax`` a block,
        which may itself be places in ``nested_quant_map``, times ``nested_absmax``, plus an offset."""
        # Double quantisation: the scales of blocks are themselves 8-bit places in a table, with scales of their own.
        largest = tensors["absmax"]
        if self.nested:
            inner = tensors["nested_absmax"].float().repeat_interleave(self.nested)[: largest.numel()]
            largest = tensors["nested_quant_map"].float()[largest.long()] * inner + self.offset
        # Places in the table of sixteen numbers, the upper half of a byte first.
        pairs = tensors["weight"].flatten()
        count = torch.Size(self.shape).numel()
        integers = torch.stack((pairs >> 4, pairs & 15), dim=1).flatten()[:count]
        values = tensors["quant_map"].float()[integers.long()]
        return (values * largest.float().repeat_interleave(self.block)[:count]).view(self.shape)
