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
from ladle.server.engine.catch_up import CatchUp, plan_catch_up
from ladle.server.engine.decode_graphs import DecodeGraphs, record_decoding
from ladle.server.engine.kv_cache import KVCache
from ladle.server.engine.prompt_scores import PromptJudge
from ladle.server.engine.sampler import Draw, Sampler
from ladle.server.engine.scheduler import Scheduler
from ladle.server.engine.sequence import Lane, Sequence
from ladle.server.engine.served_models import ServedModels
from ladle.server.engine.step_layout import LayoutBuilder, StepLayout
from ladle.server.engine.step_plan import Chunk, StepPlan


@dataclass
class StepResult:
    """``draws``: of the sequences that got a token. ``values``: of the lanes of those that only asked for values, by
    source. ``kept``: the sequences whose value lanes have the state of the drawn token already. ``caught_up``: what
    experts computed that had missed something, and who gets no token because of it."""

    draws: dict[Sequence, Draw] = field(default_factory=dict)
    values: dict[Sequence, dict[Source, float]] = field(default_factory=dict)
    kept: set[Sequence] = field(default_factory=set)
    caught_up: CatchUp = field(default_factory=CatchUp)


@dataclass
class _Found:
    """Logits of a step's forwards, part by part; the last row of each lane in them, and its last hidden state
    [hidden]."""

    logits: list[Tensor] = field(default_factory=list)
    rows: dict[Lane, int] = field(default_factory=dict)
    states: dict[Lane, Tensor] = field(default_factory=dict)

    def joined(self) -> Tensor:
        """All logits so far, [rows, vocabulary]."""
        if len(self.logits) > 1:
            self.logits = [torch.cat(self.logits)]
        return self.logits[0]


class ModelRunner:
    """The only place where a step touches tensors. Not thread-safe: the engine thread owns it."""

    def __init__(
        self, models: ServedModels, scheduler: Scheduler, sampler: Sampler, device: torch.device, graphs: bool = False
    ) -> None:
        """``graphs``: record what decodes, on a GPU."""
        self.models = models
        self.scheduler = scheduler
        self.table = table = scheduler.table
        self.sampler = sampler
        self._layouts = LayoutBuilder(table, device)
        self._judge = PromptJudge(device)
        self._recorded: dict[WeightsKey, DecodeGraphs] = {}
        for name, key in models.plain.items() if graphs else ():
            found = record_decoding(models.store.models[key], models.caches[name], table)
            if found is not None:
                self._recorded[key] = found
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
        self.rows = 0
        found = _Found()
        self._forward(plan.lanes, [chunk for chunk in plan.chunks if chunk.sequence.draws], found)
        self._value([chunk for chunk in plan.chunks if not chunk.sequence.draws], result)
        judged = [chunk for chunk in plan.chunks if chunk.judged]
        if judged:
            self._judge.judge(found.joined(), found.rows, judged)
        drawing = [sequence for sequence in plan.sampling if sequence.draws]
        if not drawing:
            return result
        turns = {} if self.models.router is None else self.models.router.choose(drawing, found.states)
        result.caught_up = late = plan_catch_up(self.scheduler, {s: turn.lanes for s, turn in turns.items()})
        # What was recorded has its results in the same place every time, where this step's first ones still are.
        self._forward(*late.split(), found, recorded=False)
        drawing = [sequence for sequence in drawing if sequence not in late.behind]
        if not drawing:
            return result
        turns = {sequence: turn for sequence, turn in turns.items() if sequence not in late.behind}
        logits = found.joined()
        allowed = self.sampler.allowed(drawing, self.models.vocabulary)
        values = value_candidates(logits, found.rows, drawing, self._layouts.build_candidates, self._hidden, allowed)
        draws = self.sampler.draw(logits, found.rows, drawing, values, turns)
        result.draws = dict(zip(drawing, draws, strict=True))
        tokens = {sequence: draw.token for sequence, draw in result.draws.items()}
        result.kept = keep_chosen(values, tokens, self.table, self._cache)
        for sequence, turn in turns.items():
            sequence.speaker = turn.speaker
        return result

    def _forward(self, lanes: Seq[Lane], chunks: Seq[Chunk], found: _Found, recorded: bool = True) -> None:
        """One forward a set of weights, ``recorded`` if that can be; what it gives is added to ``found``."""
        decode, prefill = _by_weights(chunks, lanes)
        for key in dict.fromkeys([*decode, *prefill]):
            layout = self._layouts.build(decode.get(key, []), prefill.get(key, []))
            lane = decode[key][0] if key in decode else prefill[key][0].lane
            context = self._context(lane, layout)
            graphs = self._recorded.get(key) if recorded and key not in prefill else None
            size = None if graphs is None else graphs.size_for(layout)
            if graphs is None or size is None:
                logits, hidden = self.models.store.models[key].forward(layout, context)
            else:
                logits, hidden = graphs.run(layout, size)
            before = sum(part.shape[0] for part in found.logits)
            for row, (lane, state) in enumerate(zip(layout.logit_lanes, hidden, strict=True), start=before):
                found.rows[lane] = row
                found.states[lane] = state
            if layout.logit_lanes:
                found.logits.append(logits[:, : self.models.vocabulary])

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
