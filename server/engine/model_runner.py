"""Runs one step plan: one forward per weight set over all its lanes, then one draw over all sequences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ladle.merging.weights_key import WeightsKey
from ladle.server.engine.attention import PagedContext
from ladle.server.engine.kv_cache import KVCache
from ladle.server.engine.lane_table import LaneTable
from ladle.server.engine.loaded_model import LoadedModel
from ladle.server.engine.sampler import Draw, Sampler
from ladle.server.engine.scheduler import Chunk, StepPlan
from ladle.server.engine.sequence import Lane, Sequence
from ladle.server.engine.step_layout import LayoutBuilder


class ModelRunner:
    """The only place where a step touches tensors. Not thread-safe: the engine thread owns it."""

    def __init__(self, cache: KVCache, table: LaneTable, sampler: Sampler, device: torch.device) -> None:
        self.cache = cache
        self.table = table
        self.sampler = sampler
        self._layouts = LayoutBuilder(table, device)
        self.rows = 0
        """Rows (tokens of all lanes) of the last step."""

    @torch.inference_mode()
    def step(self, plan: StepPlan, models: Mapping[WeightsKey, LoadedModel]) -> list[Draw]:
        """Compute ``plan`` with ``models`` (by the lanes' ``materialised`` keys); one Draw for each of
        ``plan.sampling``, in its order."""
        decode, chunks = _by_weights(plan)
        parts: list[Tensor] = []
        row_of: dict[int, int] = {}
        self.rows = 0
        for key in dict.fromkeys([*decode, *chunks]):
            layout = self._layouts.build(decode.get(key, []), chunks.get(key, []))
            context = PagedContext(self.cache, layout.slots, layout.groups)
            logits = models[key].forward(layout, context)
            for lane in layout.logit_lanes:
                row_of[id(lane)] = len(row_of)
            parts.append(logits)
            self.rows += layout.slots.shape[0]
        if not plan.sampling:
            return []
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        sources = [[row_of[id(lane)] for lane in sequence.lanes] for sequence in plan.sampling]
        return self.sampler.draw(logits, sources, plan.sampling)


def _by_weights(plan: StepPlan) -> tuple[dict[WeightsKey, list[Lane]], dict[WeightsKey, list[Chunk]]]:
    decode: dict[WeightsKey, list[Lane]] = {}
    chunks: dict[WeightsKey, list[Chunk]] = {}
    sequences: list[Sequence] = plan.decode
    for sequence in sequences:
        for lane in sequence.lanes:
            decode.setdefault(lane.materialised, []).append(lane)
    for chunk in plan.chunks:
        chunks.setdefault(chunk.lane.materialised, []).append(chunk)
    return decode, chunks
