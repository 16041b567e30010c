"""Between the host and the device of an engine: what goes there waits for nothing, and one wait brings all back.

Copies of memory that is not pinned wait until the device has done what it was given before, and so does each copy to
the host; a step that is to keep a GPU busy can afford one of them, at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
_APART = 64
"""Bytes at whose multiples tensors of one buffer begin: kernels read from there as from an allocation of their own."""


class Fields:
    """Arrays of given dtypes and shapes side by side in one buffer of ``nbytes`` bytes."""

    def __init__(self, arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        self._places: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self.nbytes = 0
        for name, (dtype, shape) in arrays.items():
            self._places[name] = (self.nbytes, dtype, shape)
            self.nbytes += -(-dtype.itemsize * math.prod(shape) // _APART) * _APART

    def staging(self, device: torch.device) -> tuple[Tensor, dict[str, Array]]:
        """Memory of the host from which ``device`` copies by itself, and the arrays in it; all of it zeros."""
        # Pinned: only from such memory does a copy run beside the host.
        staged = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        memory = staged.numpy()
        memory[:] = 0
        arrays = {}
        for name, (start, dtype, shape) in self._places.items():
            stop = start + dtype.itemsize * math.prod(shape)
            arrays[name] = memory[start:stop].view(dtype).reshape(shape)
        return staged, arrays

    def tensors(self, buffer: Tensor) -> dict[str, Tensor]:
        """The arrays of ``buffer`` [nbytes] uint8, which is on any device."""
        return {
            name: buffer[start : start + dtype.itemsize * math.prod(shape)].view(_DTYPES[dtype]).view(shape)
            for name, (start, dtype, shape) in self._places.items()
        }


_DTYPES = {
    np.dtype(one): other
    for one, other in (
        (np.bool_, torch.bool),
        (np.int32, torch.int32),
        (np.int64, torch.int64),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
    )
}


def send(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """``arrays`` on ``device``, in one copy that nobody waits for; on a CPU tensors that share their memory."""
    if device.type == "cpu":
        return [torch.from_numpy(np.asarray(array, order="C")) for array in arrays]
    # One buffer for all arrays: a copy costs microseconds of launch each, and a step has a dozen arrays.
    fields = Fields({str(index): (array.dtype, array.shape) for index, array in enumerate(arrays)})
    staged, offsets = fields.staging(device)
    for index, array in enumerate(arrays):
        offsets[str(index)][...] = array
    return list(fields.tensors(staged.to(device, non_blocking=True)).values())


def send_one(values: Any, device: torch.device, dtype: Any = None) -> Tensor:
    """An array, or a list of numbers, on ``device``."""
    return send([np.asarray(values, dtype=dtype)], device)[0]


def read(*tensors: Tensor) -> list[Tensor]:
    """``tensors`` on the host: the one place where a step waits for its device, once for all of them."""
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    # All copies are queued before anything waits, and one wait is enough for them.
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
