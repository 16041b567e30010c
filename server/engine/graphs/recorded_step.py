"""A decode step of one size on buffers that stay where they are: forward, choice of experts, and the draw of sequences
that add sources.

What a step needs of the host lies in one buffer of the device, so that one copy brings all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch, step_tables
from ladle.server.engine.device.transfers import Array, Fields
from ladle.server.engine.forward.attention import AttentionGroup, PagedContext, TokenBlocks
from ladle.server.engine.forward.layout import HostLayout, StepLayout
from ladle.server.engine.forward.loaded_model import LoadedModel
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.scores.expert_router import ExpertRouter
from ladle.server.engine.scores.host_tables import HostRoutes, HostTables
from ladle.server.engine.scores.slot_tables import SOURCES


@dataclass(frozen=True, order=True)
class StepSize:
    """What a recording has room for.

    Attributes:
        lanes: how many lanes.
        blocks: KV blocks of the longest lane.
        merged: whether the lanes have coefficients of members.
        steered: whether they have amounts of steering vectors.
    """

    lanes: int
    blocks: int
    merged: bool
    steered: bool = False


@dataclass(frozen=True)
class RecordedOutput:
    """What a step gives; all of it holds until the next step.

    Attributes:
        logits: [lanes, vocabulary] of the step's lanes.
        hidden: [lanes, hidden], their last hidden states.
        tokens: [lanes] int64 of its sequences; None if the step draws nothing.
        logprobs: [lanes] of these tokens, nats; None likewise.
        speakers: [2, lanes] int64, which expert speaks and how many tokens in a row it has with this one; None if no
            expert is chosen.
    """

    logits: Tensor
    hidden: Tensor
    tokens: Tensor | None = None
    logprobs: Tensor | None = None
    speakers: Tensor | None = None


class RecordedStep:
    """A step of ``size``: ``fill`` what it computes, then ``compute`` it or what was recorded of that."""

    def __init__(
        self,
        size: StepSize,
        model: LoadedModel,
        cache: KVCache,
        table: LaneTable,
        vocabulary: int,
        arange: Tensor,
        router: ExpertRouter | None,
    ) -> None:
        """``vocabulary``: tokens that may be drawn; ``arange``: 0, 1, 2, ... on the device, for as many keys."""
        self._size = size
        self._model = model
        self._cache = cache
        self._table = table
        self._vocabulary = vocabulary
        self._keys = arange[: size.blocks * BLOCK_SIZE]
        self._router = router
        long, short, float32, float64 = (np.dtype(kind) for kind in (np.int64, np.int32, np.float32, np.float64))
        lanes = size.lanes
        routed = {
            "routes": (np.dtype(np.bool_), (lanes,)),
            "history": (long, (lanes, 3)),
            "experts": (long, (lanes, 0 if router is None else router.experts)),
            "factors": (float32, (lanes, 2)),
            "thresholds": (float64, (lanes,)),
        }
        # One buffer with a fixed place for every input of the step: what the recorded kernels read lies at these
        # addresses from now on.
        self._fields = Fields(
            {
                **dict.fromkeys(("ids", "positions", "slot_mapping", "lane_rows"), (long, (lanes,))),
                "block_table": (long, (lanes, size.blocks)),
                "sources": (long, (lanes, SOURCES)),
                "weights": (float32, (lanes, SOURCES)),
                "int_params": (short, (lanes, step_tables.INT_PARAMS)),
                "float_params": (float32, (lanes, step_tables.FLOAT_PARAMS)),
                **routed,
            }
        )
        self._held = torch.zeros(self._fields.nbytes, dtype=torch.uint8, device=arange.device)
        self._tensors = self._fields.tensors(self._held)

    def fill(self, layout: HostLayout, tables: HostTables | None = None, routes: HostRoutes | None = None) -> None:
        """Compute ``layout``, of one group, and draw by ``tables``, with experts by ``routes``, or nothing that anybody
        wants.

        Lanes that are left over compute the base's first token at position 0, with coefficients 0, and store it in
        block 0, which nobody has; sequences that are left over add up nothing.
        """
        # Everything that changes from step to step is written into one pinned buffer of zeros, which goes to the device
        # in one copy that the host does not wait for: the replay is queued behind it.
        staged, arrays = self._fields.staging(self._held.device)
        (group,) = layout.groups
        lanes = layout.tokens
        # What is not written stays zero: token 0 at position 0 in block 0, which nobody reads.
        arrays["ids"][:lanes] = layout.ids
        arrays["positions"][:lanes] = layout.positions
        arrays["slot_mapping"][:lanes] = layout.slot_mapping
        arrays["lane_rows"][:lanes] = layout.lane_rows
        arrays["lane_rows"][lanes:] = self._table.capacity  # the row whose coefficients are 0
        arrays["block_table"][:lanes, : group.block_table.shape[1]] = group.block_table
        arrays["int_params"][:, step_tables.ABSENT] = -1
        if tables is not None:
            _draw(tables, routes, arrays)
        self._held.copy_(staged, non_blocking=True)

    def compute(self) -> RecordedOutput:
        """What was filled in, computed on tensors that stay where they are: no call of it waits for the device."""
        # A recording replays kernels with the addresses that they were given here. So all input lies in _held (ids,
        # positions, slot mapping and block table of the lanes; their coefficients are gathered on the device), and all
        # output in tensors that were allocated while this ran.
        held = self._tensors
        group = AttentionGroup(0, self._size.lanes, 0, held["positions"][:, None], held["block_table"], self._keys)
        merged = self._table.coefficients.index_select(0, held["lane_rows"]) if self._size.merged else None
        amounts = self._table.amounts.index_select(0, held["lane_rows"]) if self._size.steered else None
        ids, positions, no_blocks = held["ids"][None], held["positions"][None], TokenBlocks.none()
        layout = StepLayout(ids, positions, held["slot_mapping"], [group], merged, None, no_blocks, amounts=amounts)
        logits, hidden = self._model.forward(layout, PagedContext(self._cache, layout.slot_mapping, [group]))
        if not dispatch.fuses(logits):
            return RecordedOutput(logits, hidden)
        return self.draw(RecordedOutput(logits, hidden))

    def draw(self, output: RecordedOutput) -> RecordedOutput:
        """``found`` with what its logits draw."""
        held, logits = self._tensors, output.logits[:, : self._vocabulary]
        sources, weights, speakers = self._chosen(output.hidden)
        tables = step_tables.linear_tables(sources, weights, held["int_params"], held["float_params"])
        made = dispatch.fused_step(logits, replace(tables, truncates=True))
        return RecordedOutput(output.logits, output.hidden, made.tokens, made.logprobs, speakers)

    def _chosen(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sources and weights of all sequences, those of routed ones as the router says; and who speaks."""
        held = self._tensors
        sources, weights = held["sources"], held["weights"]
        if self._router is None:
            return sources, weights, None
        # The router's head reads the last hidden state of the lane that is the first source. Which expert it chooses
        # becomes a row of the logits and a weight of the tables, beside the router's own, without the host: sequences
        # that do not route keep the sources that they had.
        routers, history = sources[:, 0], held["history"]
        scores, chances = self._router.judge(hidden.index_select(0, routers))
        if not dispatch.routes(scores):
            return sources, weights, None
        asked = (chances.double() > held["thresholds"]) | (held["thresholds"] == -torch.inf)
        ones = torch.ones_like(routers)
        made = dispatch.route_rows(
            scores,
            *history.unbind(1),
            ones,
            1,
            asked,
            routers,
            held["experts"],
            *held["factors"].unbind(1),
            torch.zeros_like(asked),  # not exact: sequences with a repetition penalty are not recorded
        )
        # Both kinds share one launch: the first two columns are the router's and its expert's where a sequence routes,
        # else its own sources.
        routes = held["routes"][:, None]
        sources, weights = sources.clone(), weights.clone()
        sources[:, :2] = torch.where(routes, made.source_rows, sources[:, :2])
        weights[:, :2] = torch.where(routes, made.weights, weights[:, :2])
        return sources, weights, torch.stack((made.leading, made.stayed))


def _draw(tables: HostTables, routes: HostRoutes | None, arrays: dict[str, Array]) -> None:
    # Sequences beyond ``count`` keep weights of 0, so that the step adds up nothing for them and their draw is thrown
    # away.
    count, width = tables.source_rows.shape
    arrays["sources"][:count, :width] = tables.source_rows
    arrays["weights"][:count, :width] = tables.weights
    arrays["int_params"][:count] = tables.int_params
    arrays["float_params"][:count] = tables.float_params
    if routes is not None:
        for name, array in vars(routes).items():
            arrays[name][:count] = array
