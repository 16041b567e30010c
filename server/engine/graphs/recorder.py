"""Records work on a GPU so that it can be run again without the host launching its kernels one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Output = TypeVar("Output")
Recorder = Callable[[Callable[[], Output]], Callable[[], Output]]
"""Makes of work on tensors that stay where they are a function that does it again and overwrites its results."""
_WARM = 2


class CudaRecorder:
    """CUDA graphs of one memory pool: what needs most is best recorded first, the rest then fits into its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Callable[[], Output]) -> Callable[[], Output]:
        """Raises RuntimeError: something in ``work`` waits for the GPU, or allocates where it cannot."""
        with torch.cuda.device(self._device):
            # Kernels are compiled, and libraries choose theirs, before anything is recorded.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM):
                    work()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile: a merge, for one.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                output = work()

        def replay() -> Output:
            # The tensors of ``output`` are those of the recording, written anew by every replay.
            graph.replay()
            return output

        return replay


def recorder_for(device: torch.device) -> Recorder[Any] | None:
    """What records on ``device``; None where nothing can."""
    return CudaRecorder(device) if device.type == "cuda" else None
