"""How fast this machine reads memory, measured beside what is compared with it."""

from __future__ import annotations

import time

import torch

_ELEMENTS = 48 << 20  # 192 MiB of float32: far beyond any cache


class BandwidthProbe:
    """Reads one large preallocated tensor; ``read`` returns the bytes per second of one pass."""

    def __init__(self) -> None:
        self._data = torch.ones(_ELEMENTS)

    def read(self) -> float:
        start = time.perf_counter()
        self._data.sum()
        return self._data.nbytes / (time.perf_counter() - start)
