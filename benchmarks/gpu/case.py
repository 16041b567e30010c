"""One op at one size, as it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class OpCase:
    """``kernel`` is the op as Ladle runs it on its device, ``eager`` the same in plain torch. ``nbytes``: the fewest
    that it can read and write."""

    op: str
    size: str
    dtype: torch.dtype
    nbytes: int
    kernel: Callable[[], object]
    eager: Callable[[], object]
