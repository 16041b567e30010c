"""Decode steps of one model, recorded for some sizes and run again on the same buffers.

A step in which every lane computes one token takes the smallest recorded size that holds it. All other steps run as
they come.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import step_tables
from ladle.server.engine.device.transfers import send_one
from ladle.server.engine.forward.attention import bucket_blocks
from ladle.server.engine.forward.layout import HostGroup, HostLayout
from ladle.server.engine.forward.loaded_model import LoadedModel
from ladle.server.engine.graphs.recorded_step import RecordedOutput, RecordedStep, StepSize
from ladle.server.engine.graphs.recorder import Recorder, recorder_for
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.scores.expert_router import ExpertRouter
from ladle.server.engine.scores.host_tables import HostRoutes, HostTables

logger = logging.getLogger(__name__)

LANES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Lanes of the recorded steps. More of them keep a GPU busy for longer than the host takes to launch the rest."""
FIRST_BLOCKS, WIDER = 64, 8
"""Blocks a lane of the narrowest recordings, and how many times as wide the next are: attention is launched over all
blocks, however few of them a lane has."""


class DecodeGraphs:
    """Recordings of one model over one KV pool, for the lanes of one table.

    Attributes:
        draws: whether they draw tokens too.
        routes: whether the router chooses experts in them.
    """

    def __init__(
        self,
        model: LoadedModel,
        cache: KVCache,
        table: LaneTable,
        vocabulary: int,
        router: ExpertRouter | None,
        record: Recorder[RecordedOutput],
    ) -> None:
        """Records all sizes. ``vocabulary``: tokens that may be drawn. Raises RuntimeError where a step cannot be
        recorded."""
        self._table = table
        self._cache = cache
        self._router = router
        self._vocabulary = min(vocabulary, model.vocabulary)
        steered = model.vectors is not None
        # The largest first: see CudaRecorder.
        sizes = sorted((size for size in sizes_of(table) if steered or not size.steered), reverse=True)
        widest = max(size.blocks for size in sizes)
        arange = torch.arange(widest * BLOCK_SIZE, device=table.coefficients.device)
        self._steps: dict[StepSize, RecordedStep] = {}
        self._replays: dict[StepSize, Callable[[], RecordedOutput]] = {}
        with torch.inference_mode():
            # A recording fixes shapes and addresses: one per bucket of (lanes, KV width, merged or not, steered or
            # not).
            for size in sizes:
                step = RecordedStep(size, model, cache, table, self._vocabulary, arange, router)
                # Filled with a plausible step first: the warm-up runs it, and kernels compile for what they will see.
                step.fill(self._example(size))
                self._steps[size] = step
                self._replays[size] = record(step.compute)
            outputs = [replay() for replay in self._replays.values()]
        self.draws = all(one.tokens is not None for one in outputs)
        self.routes = all(one.speakers is not None for one in outputs)

    @property
    def most_lanes(self) -> int:
        return max(size.lanes for size in self._replays)

    def size_for(self, layout: HostLayout) -> StepSize | None:
        """The recording that ``layout`` can run on, if there is one: each lane decodes, and none is longer than any."""
        if len(layout.groups) != 1 or layout.ids is None:
            return None
        (group,) = layout.groups
        # Only pure decode fits: one query a lane, one attention group, no candidates.
        lanes, width = layout.tokens, group.block_table.shape[1]
        if group.stop != lanes or group.positions.shape != (lanes, 1) or group.visible is not None:
            return None
        # The smallest recording that holds the batch: what is padded costs as much as what is real.
        kind = layout.merged, layout.steered
        fitting = [s for s in self._replays if s.lanes >= lanes and s.blocks >= width and (s.merged, s.steered) == kind]
        return min(fitting, default=None)

    @torch.inference_mode()
    def run(
        self, layout: HostLayout, size: StepSize, tables: HostTables | None = None, routes: HostRoutes | None = None
    ) -> RecordedOutput:
        """What ``layout`` computes: logits and hidden states of the rows it wants, those that are watched last; or,
        with ``tables``, whose rows are those of the layout, one token for each of their sequences, and logits and
        hidden states of all rows. ``routes``: of the same sequences, where any of them routes."""
        self._steps[size].fill(layout, tables, routes)
        # The replay writes all rows of the size; what lies beyond the layout's lanes is padding.
        output, lanes = self._replays[size](), layout.tokens
        logits, hidden = output.logits[:lanes], output.hidden[:lanes]
        if tables is None or output.tokens is None or output.logprobs is None:
            # Value lanes have no logits: those of the others are picked out, and the step draws outside of the graph.
            if layout.logits_indices is None:
                return RecordedOutput(logits, hidden)
            wanted = send_one(layout.logits_indices, logits.device)
            seen = wanted
            if layout.watch_indices is not None:
                seen = torch.cat((wanted, send_one(layout.watch_indices, logits.device)))
            return RecordedOutput(logits.index_select(0, wanted), hidden.index_select(0, seen))
        # Padded rows drew too; only those of real sequences are read.
        count = len(tables.source_rows)
        speakers = None if routes is None or output.speakers is None else output.speakers[:, :count]
        return RecordedOutput(logits, hidden, output.tokens[:count], output.logprobs[:count], speakers)

    @torch.inference_mode()
    def agrees(self) -> bool:
        """Whether every recording gives what its step gives. Clears the whole pool, so it is for the start."""
        random = np.random.default_rng(0)
        # Random coefficients and random plans on made-up lanes: what a replay gives is compared with the same kernels
        # launched one by one. Draws are compared on the replay's own logits: rounding may decide between two tokens.
        coefficients = self._table.coefficients
        coefficients.copy_(torch.from_numpy(random.random(coefficients.shape)))
        same = True
        for size, replay in self._replays.items():
            step = self._steps[size]
            step.fill(self._example(size), *self._plans(size, random))
            one = replay()
            own = step.draw(one) if one.tokens is not None else one
            same &= _close(one.logprobs, own.logprobs) and _equal(one.tokens, own.tokens)
            same &= _equal(one.speakers, own.speakers)
            other = step.compute()
            same &= _close(one.logits, other.logits) and _close(one.hidden, other.hidden)
        coefficients.zero_()
        self._cache.clear(list(range(self._cache.blocks)))
        return same

    def _example(self, size: StepSize) -> HostLayout:
        """A layout with as many lanes as a recording has, each with its second block begun as far as there are two
        blocks for it; what is left over stores in block 0."""
        lanes = np.arange(size.lanes)
        # Two blocks per lane, from block 1 on; lanes for which the pool has none left are padding, as in a replay.
        held = np.where(2 * lanes + 1 < self._cache.blocks - 1, 2 * lanes + 1, -1)
        there = held > 0
        positions = np.where(there, BLOCK_SIZE + lanes % BLOCK_SIZE, 0)
        slot_mapping = np.where(there, (held + 1) * BLOCK_SIZE + lanes % BLOCK_SIZE, 0)
        ids = np.where(there, (7919 * lanes + 5) % self._vocabulary, 0)
        blocks = np.stack((np.maximum(held, 0), np.maximum(held + 1, 0)), axis=1)[:, : size.blocks]
        group = HostGroup(0, size.lanes, 0, positions[:, None], blocks, size.blocks * BLOCK_SIZE)
        lane_rows = lanes % (self._table.capacity + 1)
        return HostLayout(ids, positions, slot_mapping, lane_rows, size.merged, [group], None, [], steered=size.steered)

    def _plans(self, size: StepSize, random: np.random.Generator) -> tuple[HostTables, HostRoutes | None]:
        """Sequences of one to three sources, or of a router's, greedy, at random, and at random among their best."""
        lanes, indices = size.lanes, np.arange(size.lanes)
        int_params = np.zeros((lanes, step_tables.INT_PARAMS), dtype=np.int32)
        int_params[:, step_tables.ABSENT] = -1
        int_params[:, step_tables.KEYS] = random.integers(0, 2**31, (lanes, 2))
        int_params[:, step_tables.TOP_K] = np.where(indices % 3 == 2, 5, 0)
        float_params = np.ones((lanes, step_tables.FLOAT_PARAMS), dtype=np.float32)
        float_params[:, step_tables.TEMPERATURE] = indices % 3 != 0
        float_params[:, step_tables.MIN_P] = 0.0
        weights = random.uniform(-0.5, 1.5, (lanes, 3)).astype(np.float32) * (random.random((lanes, 3)) < 0.7)
        sources = random.integers(0, lanes, (lanes, 3))
        # With a router every other lane is routed, at random places of its hysteresis.
        routes = None
        if self._router is not None:
            experts = self._router.experts
            routes = HostRoutes(
                indices % 2 == 1,
                np.stack([random.integers(low, high, lanes) for low, high in ((-1, experts), (0, 3), (1, 3))], axis=1),
                random.integers(0, lanes, (lanes, experts)),
                random.random((lanes, 2)).astype(np.float32),
                np.where(random.random(lanes) < 0.5, -np.inf, 0.5),
            )
        return HostTables(sources, weights, int_params, float_params), routes


def sizes_of(table: LaneTable) -> list[StepSize]:
    """The sizes that are recorded for the lanes of ``table``."""
    # A few widths, each eight times the one before: a recording launches attention over its whole width.
    longest = max(table.blocks.shape[1], bucket_blocks(1))
    widths, width = [longest], FIRST_BLOCKS
    while width < longest:
        widths.append(width)
        width *= WIDER
    merged = (False, True) if table.members else (False,)
    steered = (False, True) if table.amounts.shape[1] else (False,)
    lanes = [count for count in LANES if count <= table.capacity]
    return [StepSize(*size) for size in itertools.product(lanes, widths, merged, steered)]


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.allclose(
        one.float(), other.float(), rtol=1e-2, atol=1e-2 * float(other.float().abs().mean()), equal_nan=True
    )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def record_decoding(
    model: LoadedModel, cache: KVCache, table: LaneTable, vocabulary: int, router: ExpertRouter | None
) -> DecodeGraphs | None:
    """Recordings of ``model``; None where nothing can be recorded, or what was recorded gives something else."""
    record = recorder_for(table.coefficients.device)
    if record is None:
        return None
    try:
        graphs = DecodeGraphs(model, cache, table, vocabulary, router, record)
        if graphs.agrees():
            return graphs
        reason = "a recording gives other values than the step that it was made of"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    logger.warning("decoding is not recorded as CUDA graphs: %s", reason)
    return None
