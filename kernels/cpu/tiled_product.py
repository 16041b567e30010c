"""Products with packed weights for any number of rows, merged as gated layers are, compiled for the processor at hand.

``y = x W^T + b + (s * (x A^T)) B``: ``A`` are the shrink and ``B`` the expand factors of a bank, ``s`` the coefficients
of the rows. Ranks that no row asks for are not read. The value of a row does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladle.kernels.cpu.aligned import aligned_array, scratch
from ladle.kernels.cpu.arrays import Floats, Product
from ladle.kernels.cpu.compiling.compiler import one_at_a_time
from ladle.kernels.cpu.digits import (
    TOGETHER,
    fits_digits,
    padded,
)
from ladle.kernels.cpu.matrix_unit import has_matrix_unit
from ladle.kernels.cpu.merged_product import merged_product
from ladle.kernels.cpu.row_products import RANKS
from ladle.kernels.cpu.tiles import LANES, has_pairs


def pack(weight: Tensor) -> Any:
    """``weight`` [out, in], bfloat16, float16 or int8, in the order in which ``tiles.tile`` reads it.

    [blocks, steps, 16 * inputs a step]: bfloat16 as int16 patterns, two inputs a step, with the inputs of an output
    side by side; float16 as uint16 patterns and int8 one input a step, or four of them, as uint8 with 128 for zero,
    where they are multiplied in ``digits``. The last block is filled with zeros.
    """
    out, size = weight.shape
    if weight.dtype == torch.int8 and fits_digits(size):
        return _pack_bytes(weight)
    together = 2 if weight.dtype == torch.bfloat16 else 1
    blocks, steps = -(-out // LANES), -(-size // together)
    held = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.int8: torch.int8}[weight.dtype]
    packed = aligned_array((blocks, steps, LANES * together), np.int8 if held == torch.int8 else np.int16)
    # Padding outputs and inputs are zeros, whose products add nothing.
    whole = weight.new_zeros(blocks * LANES, steps * together)
    whole[:out, :size] = weight
    # Output-major tiles: at each step the inputs of 16 outputs lie in one vector.
    parts = whole.view(held).view(blocks, LANES, steps, together).permute(0, 2, 1, 3)
    torch.from_numpy(packed).view(blocks, steps, LANES, together).copy_(parts)
    return packed.view(np.uint16) if weight.dtype == torch.float16 else packed


def _pack_bytes(weight: Tensor) -> Any:
    out, size = weight.shape
    blocks, width = -(-out // LANES), padded(size)
    packed = aligned_array((blocks, width // TOGETHER, LANES * TOGETHER), np.uint8)
    # The byte instruction takes unsigned weights: w + 128, and 128, which stands for zero, as padding.
    whole = torch.full((blocks * LANES, width), 128, dtype=torch.uint8)
    whole[:out, :size] = (weight.to(torch.int16) + 128).to(torch.uint8)
    # Groups of four inputs of an output side by side: what one byte instruction multiplies and adds up.
    parts = whole.view(blocks, LANES, width // TOGETHER, TOGETHER).permute(0, 2, 1, 3)
    torch.from_numpy(packed).view(blocks, width // TOGETHER, LANES, TOGETHER).copy_(parts)
    return packed


def _pack_ranks(expand: Tensor) -> Any:
    """``expand`` [out, R] as bfloat16 in whole tiles of ranks; the last ones are zeros."""
    return pack(F.pad(expand, (0, -expand.shape[1] % RANKS)).bfloat16())


def quantise(weight: Tensor) -> tuple[Tensor, Floats]:
    """``weight`` [out, in] as int8, and what one step of each output counts [out] float32: the largest weight of an
    output is 127 steps, and every one is the nearest whole number of them."""
    steps = weight.float().abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight.float() / steps[:, None]).round().to(torch.int8), steps.numpy()


class TiledProduct:
    """A linear layer, or several that read the same input, with a bank's factors for them.

    Takes and gives the dtype ``dtype``: bfloat16 where the processor multiplies pairs of it, or float32, for which
    weights are held in float16 or, ``quantized``, in int8 (``quantise``), the bank's factors in float16. ``rounded``:
    expand factors may be held in bfloat16 for float32 too.
    ``weight`` [out, in] and ``bias`` [out] or None; ``shrink`` [R, in] and ``expand`` [out, R] or None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        shrink: Tensor | None,
        expand: Tensor | None,
        dtype: torch.dtype,
        quantized: bool = False,
        rounded: bool = False,
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype
        held = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
        nothing = steps = np.zeros(0, dtype=np.float32)
        shrink = weight.new_zeros(0, self.in_features) if shrink is None else shrink
        expand = weight.new_zeros(self.out_features, 0) if expand is None else expand
        tiles = np.zeros((0, 0, 2 * LANES), dtype=np.int16)
        if (rounded or dtype == torch.bfloat16) and expand.shape[1] > 0 and has_matrix_unit():
            # Held once: either as tiles for the matrix unit or as float16 rows for vectors, the other one being empty.
            tiles, expand = _pack_ranks(expand), expand[:, :0]
        if quantized:
            weight, steps = quantise(weight)
            # Padded to whole blocks, as the loops multiply whole vectors by them.
            steps = np.pad(steps, (0, -len(steps) % LANES))
        self.product = Product(
            pack(weight if quantized else weight.to(held)),
            steps,
            nothing if bias is None else bias.float().numpy().copy(),
            pack(shrink.to(held)),
            expand.half().T.contiguous().view(torch.int16).numpy().view(np.uint16),
            tiles,
        )

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.product)

    def __call__(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """``x`` [n, in] -> [n, out]; ``scale`` [n, R] float32, the coefficient of each rank; None: no factors."""
        count, blocks = x.shape[0], self.product.weight.shape[0]
        out = x.new_empty(count, self.out_features)
        if count == 0:
            return out
        scales = np.zeros((count, 0), np.float32) if scale is None else scale.float().contiguous().numpy()
        with one_at_a_time:
            # Sums in float32, of whole blocks; they are rounded to the output's dtype when the bank's part has been
            # added.
            y = scratch(count * blocks * LANES).reshape(count, -1)
            merged_product(self.product, scales, array(x), y, array(out), torch.get_num_threads())
        return out


def array(tensor: Tensor) -> Any:
    """The memory of ``tensor``, made contiguous, as compiled code takes it: bfloat16 as int16 patterns."""
    tensor = tensor.contiguous()
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def obstacle(weight: Tensor, dtype: torch.dtype, quantized: bool = False) -> str | None:
    """Why a layer with ``weight`` [out, in] cannot be held for activations in ``dtype``, in ``quantized`` weights or
    in 16 bits; None where it can."""
    if weight.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return f"its activations are {dtype} on {weight.device.type}; tiles are of bfloat16 or float32 on a CPU"
    if dtype == torch.bfloat16 and not has_pairs():
        return "this processor does not multiply pairs of bfloat16"
    if dtype == torch.bfloat16 and weight.shape[-1] % 2:
        return f"bfloat16 is multiplied in pairs, and it has {weight.shape[-1]} inputs"
    # An int8 weight has a step of its own in float32, so that only what is no number is too large for it.
    most = torch.finfo(torch.float32 if quantized else torch.float16).max
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    return None if largest <= most else f"its largest value, {largest:.4g}, is beyond {most:.4g}"


def can_hold(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a layer with ``weight`` [out, in] can be held in 16 bits for activations in ``dtype``."""
    return obstacle(weight, dtype) is None


def stack(products: Sequence[TiledProduct]) -> Product:
    """``products``, of equal shapes but for their ranks, as one with a first axis of layers.

    Their memory moves into it: what ``products`` hold from now on are parts of it. Missing ranks are zeros.
    """
    # Layers may have different ranks: arrays are as large as the largest, and what is missing is zeros.
    given = [product.product for product in products]
    weight = aligned_array((len(given), *given[0].weight.shape), given[0].weight.dtype)
    shrink = _zeros(len(given), max(part.shrink.shape for part in given), given[0].shrink.dtype)
    expand = np.zeros((len(given), max(len(part.expand) for part in given), given[0].expand.shape[1]), np.uint16)
    tiles = _zeros(len(given), max(part.tiles.shape for part in given), np.int16)
    steps, bias = np.stack([part.steps for part in given]), np.stack([part.bias for part in given])
    for index, (product, part) in enumerate(zip(products, given, strict=True)):
        weight[index] = part.weight
        shrink[index, : len(part.shrink)] = part.shrink
        expand[index, : len(part.expand)] = part.expand
        # Each layer writes into its slice of the stack and keeps a view of it: the weights are held once.
        own_tiles = tiles[index, : part.tiles.shape[0], : part.tiles.shape[1]]
        own_tiles[:] = part.tiles
        product.product = Product(
            weight[index],
            steps[index],
            bias[index],
            shrink[index, : len(part.shrink)],
            expand[index, : len(part.expand)],
            own_tiles,
        )
    return Product(weight, steps, bias, shrink, expand, tiles)


def _zeros(layers: int, shape: tuple[int, ...], dtype: Any) -> Any:
    made = aligned_array((layers, *shape), dtype)
    made[:] = 0
    return made
