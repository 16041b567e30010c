"""The KV pool: one preallocated tensor a layer, addressed by slots of fixed-size blocks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ladle.server.engine.device.host_memory import zeroed_memory
from ladle.server.engine.device.transfers import send_one

BLOCK_SIZE = 16
"""Tokens per block. Also the query tile of prefill, so reuse of whole blocks never changes how a tile is computed."""


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps of a token.

    Attributes:
        heads: key/value heads.
        head_dim: elements of each key and of each value.
    """

    heads: int
    head_dim: int


class KVCache:
    """``layers`` pools of [blocks * BLOCK_SIZE, 2, heads, head_dim]; index 0 of the second axis is the key, 1 the
    value.

    Keys and values lie side by side so that one gather and one write serve both. Block 0 is never handed out: padded
    table entries point at it, and what is read there is masked.
    """

    def __init__(self, shapes: list[KVShape], blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = blocks
        self.shapes = shapes
        self._pool: Tensor | None = None
        # One tensor for all layers of one shape, which compiled layers address as one array; else one per layer.
        if len(set(shapes)) == 1:
            shape = (len(shapes), blocks * BLOCK_SIZE, 2, shapes[0].heads, shapes[0].head_dim)
            self._pool = _zeros(shape, dtype, device)
            # Views: layers write into the one array that compiled layers read.
            self.layers = list(self._pool.unbind())
        else:
            self.layers = [
                torch.zeros(blocks * BLOCK_SIZE, 2, shape.heads, shape.head_dim, dtype=dtype, device=device)
                for shape in shapes
            ]

    @functools.cached_property
    def array(self) -> NDArray[Any]:
        """The pools [layers, slots, 2, heads, head_dim] of layers of one shape on a CPU as an array that shares their
        memory: float32, or bfloat16 patterns as int16."""
        assert self._pool is not None
        return self._pool.view(torch.int16).numpy() if self._pool.dtype == torch.bfloat16 else self._pool.numpy()

    @staticmethod
    def bytes_per_block(shapes: list[KVShape], dtype: torch.dtype) -> int:
        elements = sum(2 * shape.heads * shape.head_dim for shape in shapes)
        return elements * BLOCK_SIZE * dtype.itemsize

    def clear(self, blocks: list[int]) -> None:
        """Zero ``blocks``. What their last owner left is masked but not harmless: a NaN or an infinity of his, weighed
        with 0, is NaN for the next owner."""
        if not blocks:
            return
        # Block by block and layer by layer, keys and values of a block in one row of the view.
        index = send_one(blocks, self.layers[0].device, np.int64)
        for layer in self.layers:
            layer.view(self.blocks, -1).index_fill_(0, index, 0)

    def write(self, layer: int, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
        """Store ``keys``, ``values`` [tokens, heads, head_dim] of ``layer`` at ``slot_mapping`` [tokens]."""
        # One scatter of [tokens, 2, heads, d], rounded to the pool's dtype.
        pair = torch.stack((keys, values), dim=1)
        self.layers[layer].index_copy_(0, slot_mapping, pair.to(self.layers[layer].dtype))

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the state at the slots ``source`` [n] to the slots ``target`` [n], in every layer."""
        for layer in self.layers:
            layer.index_copy_(0, target, layer.index_select(0, source))

    def gather(self, layer: int, table: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [lanes, heads, blocks * BLOCK_SIZE, head_dim] of the blocks ``table`` [lanes, blocks]."""
        shape = self.shapes[layer]
        # Whole blocks are gathered, padding ones (block 0) among them; the mask hides what is not the lane's.
        blocks = self.layers[layer].view(self.blocks, -1)
        lanes, width = table.shape
        pairs = blocks.index_select(0, table.reshape(-1))
        pairs = pairs.view(lanes, width * BLOCK_SIZE, 2, shape.heads, shape.head_dim)
        return pairs[:, :, 0].transpose(1, 2), pairs[:, :, 1].transpose(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, on a CPU in memory that is mapped in huge pages: reading it is bound by how many pages there are."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.frombuffer(zeroed_memory(size), np.uint8)).view(dtype).view(shape)
