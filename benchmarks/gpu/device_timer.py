"""How long a call takes on a device, and how fast that device copies, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


class DeviceTimer:
    """Times calls with cold caches. ``small``: next to no memory, where a harness is tested and not a machine."""

    def __init__(self, device: torch.device, small: bool = False) -> None:
        self.device = device
        elements = 1 << 12 if small else 1 << 27  # half a GiB of float32: far beyond any cache
        self._data = torch.ones(elements, device=device)
        self._other = torch.empty_like(self._data)

    def seconds(self, call: Callable[[], object], repeats: int = 20) -> float:
        """The median over ``repeats`` calls, after two that warm up and compile."""
        for _ in range(2):
            call()
        if self.device.type != "cuda":
            return statistics.median(self._wall(call) for _ in range(repeats))
        return statistics.median(self._events(call, repeats))

    def _wall(self, call: Callable[[], object]) -> float:
        self._other.zero_()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _events(self, call: Callable[[], object], repeats: int) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, stop in marks:
            # Empties the caches, and keeps the GPU busy while the call's first launch is on its way.
            self._other.zero_()
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(stop) / 1e3 for start, stop in marks]

    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written, of a large copy."""
        seconds = self.seconds(lambda: self._other.copy_(self._data))
        return 2 * self._data.nbytes / seconds


def nbytes(*tensors: Tensor) -> int:
    """Bytes of ``tensors``, as far as they are addressed: a view counts what it shows."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
