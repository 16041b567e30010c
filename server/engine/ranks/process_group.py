"""The processes that share one model: a torch process group of their own, on this machine only."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(minutes=5)
"""How long one exchange may take: the others may be loading. That one of them has ended is noticed by other means, and
at once."""


class ProcessGroup:
    """Process ``rank`` of ``size``. A group of its own rather than torch's default one, of which a process has only
    one: a server may have several engines. Implements ``merging.bank.tensor_parallel.RankExchange``."""

    def __init__(self, meeting: Path, rank: int, size: int, device: torch.device) -> None:
        """Waits for the others. ``meeting``: a file that is not there yet, by which they find each other."""
        self.rank = rank
        self.size = size
        store = dist.FileStore(str(meeting), size)
        self._group: Any
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = _PATIENCE
            self._group = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            # Only this machine's processes have anything to say here.
            own = dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")
            gloo: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            gloo._devices = [own]
            gloo._timeout = _PATIENCE
            self._group = dist.ProcessGroupGloo(store, rank, size, gloo)

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Tensor:
        # Columns of the output were dealt out in the order of the ranks, so they are joined in it.
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(self.size)]
        self._group.allgather([parts], [x.contiguous()]).wait()
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: Tensor) -> Tensor:
        """``x`` of process 0, for all of them; written into their contiguous ``x``."""
        self._group.broadcast(x, 0).wait()
        return x

    def leave(self) -> None:
        """Nothing more comes from here; exchanges that still wait fail."""
        for name in ("abort", "shutdown"):
            if hasattr(self._group, name):
                try:
                    getattr(self._group, name)()
                except RuntimeError:
                    pass  # this kind of group cannot
                else:
                    return
