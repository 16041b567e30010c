"""Which rank columns each tile of outputs has factors in, where several layers are stacked as one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OUTPUTS = 64
"""Outputs a tile."""
_ALIGNED = 16  # so that a load of factors begins where a GPU reads whole words

Block = tuple[int, int, int, int]
"""First output and the one after the last, first rank column and the one after the last."""


def spans_of(blocks: Sequence[Block], outputs: int, device: torch.device) -> Tensor:
    """[tiles, 2] int32: the first rank column and the one after the last in which a tile of ``OUTPUTS`` outputs has
    anything but zeros, for factors that are zero outside of ``blocks``."""
    spans = []
    for start in range(0, outputs, OUTPUTS):
        own = [block for block in blocks if block[0] < start + OUTPUTS and start < block[1]]
        first = min((block[2] for block in own), default=0)
        spans.append((first // _ALIGNED * _ALIGNED, max((block[3] for block in own), default=0)))
    return torch.tensor(spans, dtype=torch.int32, device=device).view(-1, 2)
