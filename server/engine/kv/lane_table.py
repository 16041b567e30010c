"""The state of all lanes side by side, so that a step is laid out by array operations and not lane by lane."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.kv.cache import BLOCK_SIZE


class LaneTable:
    """``rows`` rows, one a lane; a lane takes a row when admitted and gives it back when it ends or is preempted.

    computed [rows] int64: tokens whose KV state exists. last [rows] int64: the token that comes next in decode.
    blocks [rows, max_blocks] int64: the block table, 0 where unused. coefficients [rows + 1, members + vectors] float32
    (float64 for float64 weights) on the device, the last row of them always 0; amounts [rows + 1, vectors]: those of
    them that are of steering vectors, in the same memory. merged, steered [rows] bool: whether any of a member's, of a
    vector's is non-zero.
    """

    def __init__(
        self,
        rows: int,
        max_context: int,
        members: tuple[str, ...],
        dtype: torch.dtype,
        device: torch.device,
        vectors: tuple[str, ...] = (),
    ) -> None:
        self.computed = np.zeros(rows, dtype=np.int64)
        self.last = np.zeros(rows, dtype=np.int64)
        self.blocks = np.zeros((rows, -(-max_context // BLOCK_SIZE)), dtype=np.int64)
        self.members = len(members)
        self.coefficients = torch.zeros(rows + 1, len(members) + len(vectors), dtype=dtype, device=device)
        self.amounts = self.coefficients[:, len(members) :]
        self.merged = np.zeros(rows, dtype=bool)
        self.steered = np.zeros(rows, dtype=bool)
        self._column = {name: column for column, name in enumerate((*members, *vectors))}
        self._free = list(range(rows - 1, -1, -1))

    @property
    def rows(self) -> int:
        return len(self.computed)

    @property
    def idle(self) -> list[int]:
        """The rows that nobody has."""
        return list(self._free)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, coefficients: Mapping[str, float]) -> int:
        """A fresh row with the given bank coefficients (names outside the bank belong to materialised weights)."""
        row = self._free.pop()
        self.computed[row] = 0
        self.last[row] = 0
        self.blocks[row] = 0
        values = [0.0] * self.coefficients.shape[1]
        for name, value in coefficients.items():
            if name in self._column:
                values[self._column[name]] = value
        self.merged[row] = any(values[: self.members])
        self.steered[row] = any(values[self.members :])
        self.coefficients[row] = send_one(values, self.coefficients.device, np.float64).to(self.coefficients.dtype)
        return row

    def give(self, row: int) -> None:
        self._free.append(row)
