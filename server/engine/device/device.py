"""The device of an engine: the threads that launch on it, and whether it still computes after a step failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeviceLost(Exception):
    """Nothing can be computed any more in this process: an error of the device stays until the process ends."""


def require_working(device: torch.device) -> None:
    """Raise DeviceLost unless ``device`` computes.

    What a CUDA kernel did wrong is reported by every call after it, whoever makes it; a failed allocation is over when
    it was reported.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        float(torch.ones(1, device=device).sum())
    except torch.OutOfMemoryError:
        # What does not fit is over once it has been reported: the device still computes.
        return
    except RuntimeError as error:
        raise DeviceLost(str(error).partition("\n")[0]) from error


def make_current(device: torch.device) -> None:
    """Let kernels that this thread launches go to ``device``: Triton asks for the thread's own, not the tensors'."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


@contextmanager
def beside_steps(device: torch.device) -> Iterator[None]:
    """Work whose results are there when it ends, and which no step has to wait for on the way: on a stream of its own,
    where a step's kernels would else queue behind copies of whole models."""
    if device.type != "cuda":
        yield
        return
    make_current(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    # The caller's results are whole when it goes on, on whatever stream they are used.
    stream.synchronize()
