"""Whether a device still computes after a step failed on it."""

from __future__ import annotations

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
        return
    except RuntimeError as error:
        raise DeviceLost(str(error).partition("\n")[0]) from error
