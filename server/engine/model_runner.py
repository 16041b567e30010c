"""Runs one step plan: one forward per weight set over all its lanes, one over candidates, then one draw over all."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ladle.guidance.plan import Source
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
    """``draws``: of the sequences that got a token. ``values``: of the lanes of those that only asked for values, by
    source. ``kept``: the sequences whose value lanes have the state of the drawn token already."""

    draws: dict[Sequence, Draw] = field(default_factory=dict)
    values: dict[Sequence, dict[Source, float]] = field(default_factory=dict)
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
        result = StepResult()
        decode, chunks = _by_weights([chunk for chunk in plan.chunks if chunk.sequence.draws], plan.lanes)
        parts: list[Tensor] = []
        rows: dict[Lane, int] = {}
        states: dict[Lane, Tensor] = {}
        self.rows = 0
        for key in dict.fromkeys([*decode, *chunks]):
            layout = self._layouts.build(decode.get(key, []), chunks.get(key, []))
            lane = decode[key][0] if key in decode else chunks[key][0].lane
            logits, hidden = self.models.store.models[key].forward(layout, self._context(lane, layout))
            for lane, state in zip(layout.logit_lanes, hidden, strict=True):
                rows[lane] = len(rows)
                states[lane] = state
            if layout.logit_lanes:
                parts.append(logits[:, : self.models.vocabulary])
        self._value([chunk for chunk in plan.chunks if not chunk.sequence.draws], result)
        drawing = [sequence for sequence in plan.sampling if sequence.draws]
        if drawing:
            logits = parts[0] if len(parts) == 1 else torch.cat(parts)
            values = value_candidates(logits, rows, drawing, self._layouts.build_candidates, self._hidden)
            turns = {} if self.models.router is None else self.models.router.choose(drawing, states)
            draws = self.sampler.draw(logits, rows, drawing, values, turns)
            result.draws = dict(zip(drawing, draws, strict=True))
            tokens = {sequence: draw.token for sequence, draw in result.draws.items()}
            result.kept = keep_chosen(values, tokens, self.table, self._cache)
        return result

    def _value(self, chunks: Seq[Chunk], result: StepResult) -> None:
        """Values of whole texts: the head on the last state of every lane."""
        for own in _by_weights(chunks, [])[1].values():
            layout = self._layouts.build([], own)
            states = self._hidden(own[0].lane, layout)
            stop = 0
            for chunk in own:
                stop += chunk.count
                if chunk.final:
                    assert chunk.lane.head is not None
                    value = float(chunk.lane.head(states[stop - 1 : stop]))
                    result.values.setdefault(chunk.sequence, {})[chunk.lane.source] = value

    def _hidden(self, lane: Lane, layout: StepLayout) -> Tensor:
        return self.models.store.models[lane.materialised].hidden(layout, self._context(lane, layout))

    def _context(self, lane: Lane, layout: StepLayout) -> PagedContext:
        self.rows += layout.slots.shape[0]
        return PagedContext(self._cache(lane), layout.slots, layout.groups, layout.places)

    def _cache(self, lane: Lane) -> KVCache:
        return self.models.caches[lane.source.model]


def _by_weights(
    chunks: Seq[Chunk], lanes: Seq[Lane]
) -> tuple[dict[WeightsKey, list[Lane]], dict[WeightsKey, list[Chunk]]]:
    decode: dict[WeightsKey, list[Lane]] = {}
    prefill: dict[WeightsKey, list[Chunk]] = {}
    for lane in lanes:
        decode.setdefault(lane.materialised, []).append(lane)
    for chunk in chunks:
        prefill.setdefault(chunk.lane.materialised, []).append(chunk)
    return decode, prefill
