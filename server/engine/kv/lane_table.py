"""The state of all lanes side by side, so that a step is laid out by array operations and not lane by lane."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.kv.cache import BLOCK_SIZE


class LaneTable:
    """A table with one row per lane. A lane takes a row when it is admitted and gives it back when it ends or is
    preempted.

    Attributes:
        computed: [capacity] int64, tokens whose KV state exists.
        last: [capacity] int64, the token that comes next in decode.
        blocks: [capacity, max_blocks] int64, the block table, 0 where unused.
        members: how many columns of ``coefficients`` are of members.
        coefficients: [capacity + 1, members + vectors] float32 (float64 for float64 weights) on the device; its last
            row is always 0.
        amounts: [capacity + 1, vectors], the columns of ``coefficients`` that are of steering vectors, in the same
            memory.
        merged: [capacity] bool, whether any of a member's coefficients is not 0.
        steered: [capacity] bool, whether any of a vector's is not 0.
    """

    def __init__(
        self,
        capacity: int,
        max_context: int,
        members: tuple[str, ...],
        dtype: torch.dtype,
        device: torch.device,
        vectors: tuple[str, ...] = (),
    ) -> None:
        self.computed = np.zeros(capacity, dtype=np.int64)
        self.last = np.zeros(capacity, dtype=np.int64)
        self.blocks = np.zeros((capacity, -(-max_context // BLOCK_SIZE)), dtype=np.int64)
        self.members = len(members)
        self.coefficients = torch.zeros(capacity + 1, len(members) + len(vectors), dtype=dtype, device=device)
        # A view: one copy to the device writes both.
        self.amounts = self.coefficients[:, len(members) :]
        self.merged = np.zeros(capacity, dtype=bool)
        self.steered = np.zeros(capacity, dtype=bool)
        self._column = {name: column for column, name in enumerate((*members, *vectors))}
        # Rows are taken from the end: low numbers first, which keeps the used part of the table together.
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def capacity(self) -> int:
        """How many lanes have room."""
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
        # One row of the bank's coefficients per lane: in the forward, tokens pick theirs by the lane's row. Row
        # ``capacity`` stays 0 for padding.
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
