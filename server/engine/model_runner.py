"""Runs one step plan: one forward per weight set over all its lanes, one over candidates, then one draw over all."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladle.merging.weights_key import WeightsKey
from ladle.server.engine.attention import PagedContext
from ladle.server.engine.candidates import keep_chosen, value_candidates
from ladle.server.engine.kv_cache import KVCache
from ladle.server.engine.lane_table import LaneTable
from ladle.server.engine.sampler import Draw, Sampler
from ladle.server.engine.scheduler import Chunk, StepPlan
from ladle.server.engine.sequence import Lane, Sequence
from ladle.server.engine.served_models import ServedModels
from ladle.server.engine.step_layout import LayoutBuilder, StepLayout


@dataclass
class StepResult:
    """``draws``: one for each sequence that samples. ``kept``: the sequences whose value lanes have the state of the
    drawn token already."""

    draws: list[Draw] = field(default_factory=list)
    kept: set[Sequence] = field(default_factory=set)


class ModelRunner:
    """The only place where a step touches tensors. Not thread-safe: the engine thread owns it."""

    def __init__(self, models: ServedModels, table: LaneTable, sampler: Sampler, device: torch.device) -> None:
        self.models = models
        self.table = table
        self.sampler = sampler
        self._layouts = LayoutBuilder(table, device)
        self.rows = 0
        """Rows (tokens of all lanes, candidates) of the last step."""

    def clear(self, blocks: list[int]) -> None:
        """Zero what the last owners of ``blocks`` left."""
        for cache in self.models.caches.values():
            cache.clear(blocks)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepResult:
        """Compute ``plan``; the weights of its lanes must be ready."""
        decode, chunks = _by_weights(plan)
        parts: list[Tensor] = []
        rows: dict[Lane, int] = {}
        self.rows = 0
        for key in dict.fromkeys([*decode, *chunks]):
            layout = self._layouts.build(decode.get(key, []), chunks.get(key, []))
            lane = decode[key][0] if key in decode else chunks[key][0].lane
            logits = self.models.store.models[key].forward(layout, self._context(lane, layout))
            for lane in layout.logit_lanes:
                rows[lane] = len(rows)
            if layout.logit_lanes:
                parts.append(logits[:, : self.models.vocabulary])
        if not plan.sampling:
            return StepResult()
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        values = value_candidates(logits, rows, plan.sampling, self._layouts.build_candidates, self._hidden)
        draws = self.sampler.draw(logits, rows, plan.sampling, values)
        drawn = {sequence: draw.token for sequence, draw in zip(plan.sampling, draws, strict=True)}
        return StepResult(draws, keep_chosen(values, drawn, self.table, self._cache))

    def _hidden(self, lane: Lane, layout: StepLayout) -> Tensor:
        return self.models.store.models[lane.materialised].hidden(layout, self._context(lane, layout))

    def _context(self, lane: Lane, layout: StepLayout) -> PagedContext:
        self.rows += layout.slots.shape[0]
        return PagedContext(self._cache(lane), layout.slots, layout.groups)

    def _cache(self, lane: Lane) -> KVCache:
        return self.models.caches[lane.source.model]


def _by_weights(plan: StepPlan) -> tuple[dict[WeightsKey, list[Lane]], dict[WeightsKey, list[Chunk]]]:
    decode: dict[WeightsKey, list[Lane]] = {}
    chunks: dict[WeightsKey, list[Chunk]] = {}
    lanes: Seq[Lane] = plan.lanes
    for lane in lanes:
        decode.setdefault(lane.materialised, []).append(lane)
    for chunk in plan.chunks:
        chunks.setdefault(chunk.lane.materialised, []).append(chunk)
    return decode, chunks
