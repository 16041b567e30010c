"""From a step plan to the arrays of one forward: token ids, positions, KV slots, attention groups, rows of lanes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq

import numpy as np

from ladle.server.engine.device.transfers import Array
from ladle.server.engine.forward.attention import bucket_blocks
from ladle.server.engine.forward.layout import HostGroup, HostLayout
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.sequence import Lane
from ladle.server.engine.schedule.step_plan import Chunk

_NOWHERE = np.iinfo(np.int64).max
"""The position of a key that nobody sees."""


def _slots_of(blocks: Seq[int], count: int) -> Array:
    """The first ``count`` slots of ``blocks``."""
    return (np.array(blocks)[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)[:count]


class LayoutBuilder:
    """Lays out forwards over ``table``. ``together``: all lanes that decode attend in one call, however long they
    are: a GPU's kernel reads no further than a lane goes."""

    def __init__(self, table: LaneTable, together: bool) -> None:
        self._table = table
        self._together = together
        most = table.blocks.shape[1]
        # Padded widths for every number of blocks, looked up by whole arrays; no lane is wider than the block table.
        self._bucket = np.array([min(bucket_blocks(n), max(most, 4)) for n in range(most + 1)])

    @property
    def most_keys(self) -> int:
        """How many keys a group may have that follow their blocks."""
        return int(self._bucket[-1]) * BLOCK_SIZE

    def build(self, decode: Seq[Lane], chunks: Seq[Chunk]) -> HostLayout:
        """The layout of one forward: ``decode`` lanes compute one token each, then the ``chunks`` follow."""
        table = self._table
        # Decode: one token a lane. A lane's bucket is the padded number of blocks that its context fills.
        decode_rows = np.fromiter((lane.row for lane in decode), dtype=np.int64, count=len(decode))
        widths = self._bucket[table.computed[decode_rows] // BLOCK_SIZE + 1]
        if self._together:
            widths = np.full_like(widths, widths.max(initial=0))
        # Lanes of one bucket lie side by side, so that each bucket is a slice.
        order = np.argsort(widths, kind="stable")
        decode_rows, widths = decode_rows[order], widths[order]
        groups = self._decode_groups(decode_rows, widths)
        # The batch is flat, without padding: decode tokens first, then the tokens of every prefill chunk.
        row_parts, position_parts, id_parts = [decode_rows], [table.computed[decode_rows]], [table.last[decode_rows]]
        ordered = [decode[index] for index in order]
        wanted = [index for index, lane in enumerate(ordered) if lane.speaks]
        lanes = [ordered[index] for index in wanted]
        watched = [index for index, lane in enumerate(ordered) if lane.watches]
        watching = [ordered[index] for index in watched]
        start = len(decode_rows)
        for chunk in chunks:
            assert chunk.lane.row is not None
            row_parts.append(np.full(chunk.stop - chunk.start, chunk.lane.row))
            position_parts.append(np.arange(chunk.start, chunk.stop))
            id_parts.append(np.asarray(chunk.ids, dtype=np.int64))
            groups.extend(self._chunk_groups(chunk, start))
            start += chunk.stop - chunk.start
            # Logits cost a product with the vocabulary: only the last token of a finished prompt gets them, or judged
            # ones.
            wants = chunk.count if chunk.judged else int(chunk.final) + len(chunk.drafted)
            if chunk.lane.speaks:
                wanted.extend(range(start - wants, start))
                lanes.extend([chunk.lane] * wants)
            elif chunk.lane.watches and chunk.final:
                # A watching lane is valued at its last token, and at every drafted one that may be confirmed in this
                # step.
                seen = range(start - 1 - len(chunk.drafted), start)
                watched.extend(seen)
                watching.extend([chunk.lane] * len(seen))
        # A token's KV slot follows from its lane's block table and its position alone.
        lane_rows, positions = np.concatenate(row_parts), np.concatenate(position_parts)
        return HostLayout(
            np.concatenate(id_parts),
            positions,
            table.blocks[lane_rows, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
            lane_rows,
            bool(table.merged[lane_rows].any()),
            groups,
            None if len(wanted) == start else np.asarray(wanted, dtype=np.int64),
            lanes,
            np.asarray(watched, dtype=np.int64) if watched else None,
            watching,
            steered=bool(table.steered[lane_rows].any()),
        )

    def build_candidates(self, lanes: Seq[Lane], lengths: Seq[int], counts: Seq[int]) -> HostLayout:
        """The layout of one forward over the candidates of every lane.

        ``counts[i]`` tokens could each come next, at position ``lengths[i]``, in ``lanes[i]``: so many new tokens over
        one shared prefix, not so many sequences. Their state goes to the lane's scratch blocks. No logits are wanted;
        ``logit_lanes`` lists a lane once for each of its candidates, in their order.
        """
        table = self._table
        many = np.array(counts)
        starts = np.array(lengths)
        widths = self._bucket[starts // BLOCK_SIZE + 1]
        # Lanes of equal width and equally many candidates form a rectangle, which attends in one call.
        order = sorted(range(len(lanes)), key=lambda index: (widths[index], many[index]))
        groups, start = [], 0
        for (width, count), members in itertools.groupby(order, key=lambda index: (widths[index], many[index])):
            part = list(members)
            # A rectangle: ``part`` lanes of ``count`` candidates each, one tile per lane.
            lane_rows = np.array([lanes[index].row for index in part])
            scratch = np.array([lanes[index].scratch for index in part])
            groups.append(self._candidate_group(start, int(width), int(count), lane_rows, scratch, starts[part]))
            start += len(part) * int(count)
        lane_rows = np.array([lanes[index].row for index in order]).repeat(many[order])
        slot_mapping = [_slots_of(lanes[index].scratch, many[index]) for index in order]
        return HostLayout(
            None,
            starts[order].repeat(many[order]),
            np.concatenate(slot_mapping),
            lane_rows,
            bool(table.merged[lane_rows].any()),
            groups,
            None,
            [lanes[index] for index in order for _ in range(many[index])],
            steered=bool(table.steered[lane_rows].any()),
        )

    def _candidate_group(
        self, start: int, width: int, count: int, lane_rows: Array, scratch: Array, lengths: Array
    ) -> HostGroup:
        # Keys are the lane's prefix and its scratch blocks. All candidates stand at one position, and each sees the
        # prefix and itself: a tree attention of depth one.
        prefix = np.arange(width * BLOCK_SIZE)
        key_positions = np.where(prefix < lengths[:, None], prefix, _NOWHERE)
        own = np.broadcast_to(lengths[:, None], (len(lane_rows), scratch.shape[1] * BLOCK_SIZE))
        visible = np.concatenate(
            (np.ones((count, len(prefix)), dtype=bool), np.eye(count, own.shape[1], dtype=bool)), axis=1
        )
        return HostGroup(
            start,
            start + len(lane_rows) * count,
            0,
            lengths.repeat(count).reshape(-1, count),
            np.concatenate((self._blocks(lane_rows, width), scratch), axis=1),
            np.concatenate((key_positions, own), axis=1)[:, None],
            visible,
        )

    def _blocks(self, lane_rows: Array, width: int) -> Array:
        held = self._table.blocks[lane_rows, :width]
        return held if held.shape[1] == width else np.pad(held, ((0, 0), (0, width - held.shape[1])))

    def _decode_groups(self, lane_rows: Array, widths: Array) -> list[HostGroup]:
        groups = []
        # Runs of equal width: the edges are where the sorted widths change.
        edges = np.flatnonzero(np.diff(widths, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            width = int(widths[start])
            part = lane_rows[start:stop]
            groups.append(
                HostGroup(
                    int(start),
                    int(stop),
                    0,
                    self._table.computed[part][:, None],
                    self._blocks(part, width),
                    width * BLOCK_SIZE,
                )
            )
        return groups

    def _chunk_groups(self, chunk: Chunk, start: int) -> list[HostGroup]:
        """The chunk's query tiles, aligned to absolute positions and grouped by bucket: the place of a chunk's edges,
        which depends on load, leaves no mark on the values."""
        # Tiles of BLOCK_SIZE queries at absolute positions; consecutive tiles of one padded KV width form a group.
        first, last = chunk.start // BLOCK_SIZE, (chunk.stop - 1) // BLOCK_SIZE
        widths = self._bucket[np.arange(first, last + 1) + 1]
        edges = np.flatnonzero(np.diff(widths, prepend=-1, append=-1))
        groups = []
        for lower, upper in itertools.pairwise(edges):
            begin, end = (first + int(lower)) * BLOCK_SIZE, (first + int(upper)) * BLOCK_SIZE
            # Tiles are whole; the first and last may reach beyond the chunk, where their queries are padding.
            from_token, to_token = max(begin, chunk.start), min(end, chunk.stop)
            width = int(widths[lower])
            groups.append(
                HostGroup(
                    start + from_token - chunk.start,
                    start + to_token - chunk.start,
                    from_token - begin,
                    np.arange(begin, end).reshape(-1, BLOCK_SIZE),
                    self._blocks(np.array([chunk.lane.row]), width),
                    width * BLOCK_SIZE,
                )
            )
        return groups
