"""From a step plan to the arrays of one forward: token ids, positions, KV slots, attention groups, coefficient rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.server.engine.attention import AttentionGroup, TokenPlaces, bucket_blocks
from ladle.server.engine.kv_cache import BLOCK_SIZE
from ladle.server.engine.lane_table import LaneTable
from ladle.server.engine.sequence import Lane
from ladle.server.engine.step_plan import Chunk

_NOWHERE = np.iinfo(np.int64).max
"""The place of a key that nobody sees."""


def _slots(blocks: Seq[int], count: int) -> np.ndarray:
    """The first ``count`` slots of ``blocks``."""
    return (np.array(blocks)[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)[:count]


@dataclass
class StepLayout:
    """One forward over the tokens of many lanes side by side.

    ``ids``, ``positions`` [1, tokens] int64; ``slots`` [tokens] int64; ``coefficients`` [tokens, members] or None when
    every token runs on plain weights; ``logit_rows`` [n] int64 tokens whose logits are wanted (None: all);
    ``logit_lanes``: the lane each of them belongs to. ``places``: where each token is.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: list[AttentionGroup]
    coefficients: Tensor | None
    logit_rows: Tensor | None
    logit_lanes: list[Lane]
    places: TokenPlaces


class LayoutBuilder:
    """Lays out forwards over ``table``; tensors go to ``device``."""

    def __init__(self, table: LaneTable, device: torch.device) -> None:
        self._table = table
        self._device = device
        most = table.blocks.shape[1]
        self._bucket = np.array([min(bucket_blocks(n), max(most, 4)) for n in range(most + 1)])
        self._keys = torch.arange((max(most, 4)) * BLOCK_SIZE, device=device)

    def build(self, decode: Seq[Lane], chunks: Seq[Chunk]) -> StepLayout:
        """The layout of one forward: ``decode`` lanes compute one token each, then the ``chunks`` follow."""
        table = self._table
        rows = np.fromiter((lane.row for lane in decode), dtype=np.int64, count=len(decode))
        widths = self._bucket[table.computed[rows] // BLOCK_SIZE + 1]
        if dispatch.on_gpu(self._keys):
            # One launch for all of them: a kernel reads no further than a lane goes.
            widths = np.full_like(widths, widths.max(initial=0))
        # Lanes of one bucket lie side by side, so that each bucket is a slice.
        order = np.argsort(widths, kind="stable")
        rows, widths = rows[order], widths[order]
        groups = self._decode_groups(rows, widths)
        row_parts, position_parts, id_parts = [rows], [table.computed[rows]], [table.last[rows]]
        ordered = [decode[index] for index in order]
        wanted = [index for index, lane in enumerate(ordered) if not lane.scores]
        lanes = [ordered[index] for index in wanted]
        start = len(rows)
        for chunk in chunks:
            assert chunk.lane.row is not None
            stop = chunk.start + chunk.count
            row_parts.append(np.full(chunk.count, chunk.lane.row))
            position_parts.append(np.arange(chunk.start, stop))
            id_parts.append(np.asarray(chunk.sequence.tokens(chunk.lane, chunk.start, stop), dtype=np.int64))
            groups.extend(self._chunk_groups(chunk, start))
            start += chunk.count
            wants = chunk.count if chunk.judged else int(chunk.final)
            if not chunk.lane.scores:
                wanted.extend(range(start - wants, start))
                lanes.extend([chunk.lane] * wants)
        all_rows, positions = np.concatenate(row_parts), np.concatenate(position_parts)
        slots = table.blocks[all_rows, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        coefficients = None
        if table.merged[all_rows].any():
            coefficients = table.coefficients.index_select(0, self._tensor(all_rows))
        return StepLayout(
            self._tensor(np.concatenate(id_parts))[None],
            self._tensor(positions)[None],
            self._tensor(slots),
            groups,
            coefficients,
            None if len(wanted) == start else self._tensor(np.asarray(wanted, dtype=np.int64)),
            lanes,
            TokenPlaces(table.blocks, all_rows, positions),
        )

    def build_candidates(self, lanes: Seq[Lane], lengths: Seq[int], candidates: Seq[Tensor]) -> StepLayout:
        """The layout of one forward over the candidates of every lane.

        ``candidates[i]`` [k_i] int64 are token ids that could each come next, at position ``lengths[i]``, in
        ``lanes[i]``: k_i new tokens over one shared prefix, not k_i sequences. Their state goes to the lane's scratch
        blocks. No logits are wanted; ``logit_lanes`` lists a lane once for each of its candidates, in their order.
        """
        table = self._table
        counts = np.array([ids.shape[0] for ids in candidates])
        starts = np.array(lengths)
        widths = self._bucket[starts // BLOCK_SIZE + 1]
        order = sorted(range(len(lanes)), key=lambda index: (widths[index], counts[index]))
        groups, start = [], 0
        for (width, count), members in itertools.groupby(order, key=lambda index: (widths[index], counts[index])):
            part = list(members)
            rows = np.array([lanes[index].row for index in part])
            scratch = np.array([lanes[index].scratch for index in part])
            groups.append(self._candidate_group(start, int(width), int(count), rows, scratch, starts[part]))
            start += len(part) * int(count)
        rows = np.array([lanes[index].row for index in order]).repeat(counts[order])
        slots = [_slots(lanes[index].scratch, counts[index]) for index in order]
        coefficients = None
        if table.merged[rows].any():
            coefficients = table.coefficients.index_select(0, self._tensor(rows))
        positions = starts[order].repeat(counts[order])
        return StepLayout(
            torch.cat([candidates[index] for index in order])[None],
            self._tensor(positions)[None],
            self._tensor(np.concatenate(slots)),
            groups,
            coefficients,
            None,
            [lanes[index] for index in order for _ in range(counts[index])],
            TokenPlaces(table.blocks, rows, positions),
        )

    def _candidate_group(
        self, start: int, width: int, count: int, rows: np.ndarray, scratch: np.ndarray, lengths: np.ndarray
    ) -> AttentionGroup:
        prefix = np.arange(width * BLOCK_SIZE)
        places = np.where(prefix < lengths[:, None], prefix, _NOWHERE)
        own = np.broadcast_to(lengths[:, None], (len(rows), scratch.shape[1] * BLOCK_SIZE))
        visible = np.concatenate(
            (np.ones((count, len(prefix)), dtype=bool), np.eye(count, own.shape[1], dtype=bool)), axis=1
        )
        return AttentionGroup(
            start,
            start + len(rows) * count,
            0,
            self._tensor(lengths.repeat(count).reshape(-1, count)),
            torch.cat((self._blocks(rows, width), self._tensor(scratch)), dim=1),
            self._tensor(np.concatenate((places, own), axis=1)[:, None]),
            self._tensor(visible),
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)

    def _blocks(self, rows: np.ndarray, width: int) -> Tensor:
        held = self._table.blocks[rows, :width]
        if held.shape[1] < width:
            held = np.pad(held, ((0, 0), (0, width - held.shape[1])))
        return self._tensor(held)

    def _decode_groups(self, rows: np.ndarray, widths: np.ndarray) -> list[AttentionGroup]:
        groups = []
        edges = np.flatnonzero(np.diff(widths, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            width = int(widths[start])
            part = rows[start:stop]
            groups.append(
                AttentionGroup(
                    int(start),
                    int(stop),
                    0,
                    self._tensor(self._table.computed[part][:, None]),
                    self._blocks(part, width),
                    self._keys[: width * BLOCK_SIZE],
                )
            )
        return groups

    def _chunk_groups(self, chunk: Chunk, start: int) -> list[AttentionGroup]:
        """The chunk's query tiles, aligned to absolute positions and grouped by bucket: the place of a chunk's edges,
        which depends on load, leaves no mark on the values."""
        first, last = chunk.start // BLOCK_SIZE, (chunk.start + chunk.count - 1) // BLOCK_SIZE
        widths = self._bucket[np.arange(first, last + 1) + 1]
        edges = np.flatnonzero(np.diff(widths, prepend=-1, append=-1))
        groups = []
        for lower, upper in itertools.pairwise(edges):
            begin, end = (first + int(lower)) * BLOCK_SIZE, (first + int(upper)) * BLOCK_SIZE
            from_token, to_token = max(begin, chunk.start), min(end, chunk.start + chunk.count)
            width = int(widths[lower])
            groups.append(
                AttentionGroup(
                    start + from_token - chunk.start,
                    start + to_token - chunk.start,
                    from_token - begin,
                    torch.arange(begin, end, device=self._device).view(-1, BLOCK_SIZE),
                    self._blocks(np.array([chunk.lane.row]), width),
                    self._keys[: width * BLOCK_SIZE],
                )
            )
        return groups
