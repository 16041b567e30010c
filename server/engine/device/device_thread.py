"""What a thread says before it gives work to a GPU: which one, and whether it is to wait for the engine's steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    stream.synchronize()
