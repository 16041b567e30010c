"""One forward over the tokens of many lanes side by side: as arrays of the host, then as tensors of the device."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ladle.server.engine.device.transfers import Array, send
from ladle.server.engine.forward.attention import AttentionGroup, TokenBlocks
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.sequence import Lane


@dataclass
class StepLayout:
    """What one forward reads, on its device.

    Attributes:
        ids: [1, tokens] int64.
        positions: [1, tokens] int64.
        slot_mapping: [tokens] int64, where new keys and values go.
        groups: which queries attend in one call.
        coefficients: [tokens, members], or None when every token runs on plain weights.
        logits_indices: [n] int64, tokens whose logits are wanted; None: all.
        token_blocks: where each token is.
        watch_indices: [m] int64, tokens whose last hidden states are wanted and no logits; None: none.
        amounts: [tokens, vectors], how much of each steering vector a token gets; None when none gets any.
    """

    ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    groups: list[AttentionGroup]
    coefficients: Tensor | None
    logits_indices: Tensor | None
    token_blocks: TokenBlocks
    watch_indices: Tensor | None = None
    amounts: Tensor | None = None


@dataclass
class HostGroup:
    """An ``AttentionGroup`` of arrays.

    Attributes:
        start, stop, left_padding, positions, block_table, visible: as there.
        keys: how many keys there are where they follow their blocks, else their positions.
    """

    start: int
    stop: int
    left_padding: int
    positions: Array
    block_table: Array
    keys: int | Array
    visible: Array | None = None

    @property
    def arrays(self) -> list[Array]:
        """What is to be sent."""
        # The order is what ``on_device`` takes them back in: ``visible``, where there is one, comes last.
        arrays = [self.positions, self.block_table]
        if not isinstance(self.keys, int):
            arrays.append(self.keys)
        return arrays if self.visible is None else [*arrays, self.visible]

    def on_device(self, sent: list[Tensor], arange: Tensor) -> AttentionGroup:
        """``sent``: ``arrays`` on their device; ``arange`` 0, 1, 2, ... there."""
        # Keys that follow their blocks have the positions 0, 1, 2, ...: a slice of what lies on the device anyway.
        keys = arange[: self.keys] if isinstance(self.keys, int) else sent[2]
        visible = None if self.visible is None else sent[-1]
        return AttentionGroup(self.start, self.stop, self.left_padding, sent[0], sent[1], keys, visible)


@dataclass
class HostLayout:
    """A ``StepLayout`` of arrays.

    Attributes:
        ids: [tokens] int64; None: the tokens are on the device already.
        positions: [tokens] int64.
        slot_mapping: [tokens] int64.
        lane_rows: [tokens] int64, of the lane table, in place of coefficients.
        merged: whether any coefficients are needed.
        groups: which queries attend in one call.
        logits_indices: [n] int64, tokens whose logits are wanted; None: all.
        logit_lanes: the lanes of the tokens whose logits are wanted.
        watch_indices: [m] int64, the last tokens of lanes that watch; None: there are none.
        watch_lanes: these lanes.
        steered: whether any steering vectors are needed.
    """

    ids: Array | None
    positions: Array
    slot_mapping: Array
    lane_rows: Array
    merged: bool
    groups: list[HostGroup]
    logits_indices: Array | None
    logit_lanes: list[Lane]
    watch_indices: Array | None = None
    watch_lanes: list[Lane] = field(default_factory=list)
    steered: bool = False

    @property
    def tokens(self) -> int:
        return len(self.slot_mapping)

    @property
    def logit_table_rows(self) -> Array:
        """[n] int64, rows of the lane table, of ``logit_lanes``."""
        return self.lane_rows if self.logits_indices is None else self.lane_rows[self.logits_indices]

    def send(self, table: LaneTable, arange: Tensor, ids: Tensor | None = None) -> StepLayout:
        """Copy this layout to the device in one transfer.

        Args:
            table: the rows of the lanes, with their blocks and coefficients.
            arange: 0, 1, 2, ... int64 on that device, as many as a group may have keys.
            ids: [tokens] token ids there, required where the layout has none of its own.
        """
        # Flatten all arrays, copy them in one transfer, and take them out of the iterator in the same order.
        own = [self.positions, self.slot_mapping]
        own += [array for array in (self.ids, self.logits_indices, self.watch_indices) if array is not None]
        own += [self.lane_rows] if self.merged or self.steered else []
        grouped = [group.arrays for group in self.groups]
        tensors = iter(send([*own, *(array for arrays in grouped for array in arrays)], arange.device))
        positions, slot_mapping = next(tensors), next(tensors)
        tokens = ids if self.ids is None else next(tensors)
        assert tokens is not None
        logits_indices = None if self.logits_indices is None else next(tensors)
        watched = None if self.watch_indices is None else next(tensors)
        # Coefficients lie on the device in the lane table; a row is picked per token, and only where any token has
        # some.
        lane_rows = next(tensors) if self.merged or self.steered else None
        coefficients = table.coefficients.index_select(0, lane_rows) if lane_rows is not None and self.merged else None
        amounts = table.amounts.index_select(0, lane_rows) if lane_rows is not None and self.steered else None
        groups = [
            group.on_device([next(tensors) for _ in arrays], arange)
            for group, arrays in zip(self.groups, grouped, strict=True)
        ]
        token_blocks = TokenBlocks(table.blocks, self.lane_rows, self.positions)
        placed = (tokens[None], positions[None], slot_mapping)
        return StepLayout(*placed, groups, coefficients, logits_indices, token_blocks, watched, amounts)
