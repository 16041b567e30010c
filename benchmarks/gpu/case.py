"""One op at one size, as it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class OpCase:
    """An operation at one size.

    Attributes:
        op: its name.
        size: in words.
        dtype: of what it reads.
        nbytes: the fewest bytes that it can read and write.
        kernel: the operation as Ladle runs it on its device.
        eager: the same in plain torch.
    """

    op: str
    size: str
    dtype: torch.dtype
    nbytes: int
    kernel: Callable[[], object]
    eager: Callable[[], object]
