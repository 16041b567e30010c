"""Decode forwards of one model, recorded for some sizes and run again on the same buffers.

A step in which every lane computes one token takes the smallest recorded size that holds it; rows that are left over
compute the base's first token at place 0 and store it in block 0, which nobody has. All other steps run as they come.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ladle.server.engine.attention import AttentionGroup, PagedContext, TokenPlaces, bucket_blocks
from ladle.server.engine.graph_recorder import Recorder, recorder_for
from ladle.server.engine.kv_cache import BLOCK_SIZE, KVCache
from ladle.server.engine.lane_table import LaneTable
from ladle.server.engine.loaded_model import LoadedModel
from ladle.server.engine.step_layout import StepLayout

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Rows of the recorded forwards. More of them keep a GPU busy for longer than the host takes to launch the rest."""
FIRST_BLOCKS, WIDER = 64, 8
"""Blocks a lane of the narrowest recordings, and how many times as wide the next are: attention is launched over all
blocks, however few of them a lane has."""
_Found = tuple[Tensor, Tensor]


@dataclass(frozen=True, order=True)
class Size:
    """``rows`` lanes of up to ``blocks`` blocks each; ``merged``: with coefficients."""

    rows: int
    blocks: int
    merged: bool


class DecodeGraphs:
    """Recordings of ``model`` over ``cache``, for the lanes of ``table``."""

    def __init__(self, model: LoadedModel, cache: KVCache, table: LaneTable, record: Recorder[_Found]) -> None:
        """Records all sizes. Raises RuntimeError where a forward cannot be recorded."""
        self._model = model
        self._cache = cache
        sizes = sorted(sizes_of(table), reverse=True)  # see CudaRecorder
        most, widest = sizes[0].rows, max(size.blocks for size in sizes)
        members, device = table.coefficients.shape[1], table.coefficients.device
        # Each by itself: kernels read quicker from where an allocation begins.
        self._ids, self._positions, self._slots = (
            torch.zeros(most, dtype=torch.int64, device=device) for _ in range(3)
        )
        self._blocks = torch.zeros(most, widest, dtype=torch.int64, device=device)
        self._coefficients = torch.zeros(most, members, dtype=table.coefficients.dtype, device=device)
        self._keys = torch.arange(widest * BLOCK_SIZE, device=device)
        self._replays: dict[Size, Callable[[], _Found]] = {}
        with torch.inference_mode():
            for size in sizes:
                self._replays[size] = record(partial(self._forward, size))

    def size_for(self, layout: StepLayout) -> Size | None:
        """The recording that ``layout`` can run on, if there is one: each lane decodes, and none is longer than any."""
        if len(layout.groups) != 1:
            return None
        (group,) = layout.groups
        rows, width = layout.ids.shape[1], group.table.shape[1]
        if group.stop != rows or tuple(group.positions.shape) != (rows, 1) or group.visible is not None:
            return None
        merged = layout.coefficients is not None
        fitting = [s for s in self._replays if s.rows >= rows and s.blocks >= width and s.merged == merged]
        return min(fitting, default=None)

    @torch.inference_mode()
    def run(self, layout: StepLayout, size: Size) -> _Found:
        """What ``LoadedModel.forward`` gives for ``layout``. Both tensors hold until the next call."""
        (group,) = layout.groups
        rows = layout.ids.shape[1]
        self._ids[:rows] = layout.ids[0]
        self._positions[:rows] = layout.positions[0]
        self._slots[:rows] = layout.slots
        self._blocks[:rows, : group.table.shape[1]] = group.table
        if layout.coefficients is not None:
            self._coefficients[:rows] = layout.coefficients
        if size.rows > rows:
            # What the last owner of a row left would go into a block that is another's by now.
            for buffer in (self._ids, self._positions, self._slots, self._coefficients):
                buffer[rows : size.rows].zero_()
        logits, hidden = self._replays[size]()
        if layout.logit_rows is None:
            return logits[:rows], hidden[:rows]
        return logits.index_select(0, layout.logit_rows), hidden.index_select(0, layout.logit_rows)

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Whether every recording gives what its forward gives. Clears the whole pool, so it is for the start."""
        generator = torch.Generator().manual_seed(0)
        self._coefficients.copy_(torch.rand(self._coefficients.shape, generator=generator))
        most, blocks = len(self._ids), self._cache.blocks - 1
        rows = torch.arange(most)
        # Two blocks a row, as long as there are any; what is left over stores in block 0.
        held = torch.where(2 * rows + 1 < blocks, 2 * rows + 1, -1)
        self._ids.copy_(torch.randint(0, self._model.vocabulary, (most,), generator=generator))
        self._positions.copy_(torch.where(held > 0, BLOCK_SIZE + rows % BLOCK_SIZE, 0))
        self._slots.copy_(torch.where(held > 0, (held + 1) * BLOCK_SIZE + rows % BLOCK_SIZE, 0))
        self._ids[(held < 0).to(self._ids.device)] = 0
        self._blocks[:, 0].copy_(held.clamp(min=0))
        self._blocks[:, 1].copy_((held + 1).clamp(min=0))
        same = True
        for size, replay in self._replays.items():
            pairs = zip(replay(), self._forward(size), strict=True)
            same &= all(_close(one, other) for one, other in pairs)
        self._cache.clear(list(range(self._cache.blocks)))
        return same

    def _forward(self, size: Size) -> _Found:
        positions, slots = self._positions[: size.rows], self._slots[: size.rows]
        blocks, keys = self._blocks[: size.rows, : size.blocks], self._keys[: size.blocks * BLOCK_SIZE]
        group = AttentionGroup(0, size.rows, 0, positions[:, None], blocks, keys)
        coefficients = self._coefficients[: size.rows] if size.merged else None
        layout = StepLayout(
            self._ids[None, : size.rows], positions[None], slots, [group], coefficients, None, [], TokenPlaces.none()
        )
        return self._model.forward(layout, PagedContext(self._cache, slots, [group]))


def sizes_of(table: LaneTable) -> list[Size]:
    """The sizes that are recorded for the lanes of ``table``."""
    longest = max(table.blocks.shape[1], bucket_blocks(1))
    widths, width = [longest], FIRST_BLOCKS
    while width < longest:
        widths.append(width)
        width *= WIDER
    kinds = (False, True) if table.coefficients.shape[1] else (False,)
    rows = [count for count in ROWS if count <= table.rows]
    return [Size(*size) for size in itertools.product(rows, widths, kinds)]


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(
        one.float(), other.float(), rtol=1e-2, atol=1e-2 * float(other.float().abs().mean()), equal_nan=True
    )


def record_decoding(model: LoadedModel, cache: KVCache, table: LaneTable) -> DecodeGraphs | None:
    """Recordings of ``model``; None where nothing can be recorded, or what was recorded gives something else."""
    record = recorder_for(table.coefficients.device)
    if record is None:
        return None
    try:
        graphs = DecodeGraphs(model, cache, table, record)
        if graphs.agrees():
            return graphs
        reason = "a recording gives other values than the forward that it was made of"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    logger.warning("decoding is not recorded as CUDA graphs: %s", reason)
    return None
