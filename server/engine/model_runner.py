"""Runs one step plan: one forward per weight set over all its lanes, one over candidates, then one draw over all."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ladle.kernels import dispatch
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.device.transfers import Array, read, send_one
from ladle.server.engine.forward.attention import PagedContext
from ladle.server.engine.forward.layout import HostLayout, StepLayout
from ladle.server.engine.forward.layout_builder import LayoutBuilder
from ladle.server.engine.graphs.decode_graphs import DecodeGraphs, record_decoding
from ladle.server.engine.kv.cache import KVCache
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.catch_up import plan_catch_up
from ladle.server.engine.schedule.drafts import drafted_lanes
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import Chunk, StepPlan
from ladle.server.engine.scores.candidates import CandidateValues, keep_chosen, value_candidates
from ladle.server.engine.scores.expert_router import ExpertTurn
from ladle.server.engine.scores.prompt_scores import PromptJudge
from ladle.server.engine.scores.sampler import Draw, Sampler
from ladle.server.engine.scores.watched import WatchedStates, with_watched
from ladle.server.engine.served_models import ServedModels
from ladle.server.engine.step_result import StepResult


@dataclass
class _Logits:
    """What the forwards of a step give.

    Attributes:
        logits_rows: [rows of the lane table] int64, the row of the logits that is of each lane's last token.
        parts: [n, vocabulary] of each forward.
        states: last hidden states [hidden] by lane, in the order of its tokens whose logits are wanted; None where
            nobody asks for them.
        drafted: how many drafted tokens each lane that has some has still in front of it.
        watched: last hidden states of lanes that watch.
    """

    logits_rows: Array
    parts: list[Tensor] = field(default_factory=list)
    states: dict[Lane, list[Tensor]] | None = None
    drafted: dict[Lane, int] = field(default_factory=dict)
    watched: WatchedStates = field(default_factory=WatchedStates)

    def add(self, layout: HostLayout, logits: Tensor, hidden: Tensor) -> None:
        """What the forward of ``layout`` gave for the tokens whose logits are wanted, or states alone."""
        # Rows that are wanted come first, those that are watched after them.
        if layout.watch_lanes:
            self.watched.add(layout.watch_lanes, hidden[len(layout.logit_lanes) :])
            hidden = hidden[: len(layout.logit_lanes)]
        if not layout.logit_lanes:
            return
        # Rows are numbered through all forwards of the step, in the order in which they ran.
        before = sum(part.shape[0] for part in self.parts)
        self.logits_rows[layout.logit_table_rows] = np.arange(before, before + len(layout.logit_lanes))
        self.parts.append(logits)
        if self.states is not None:
            for lane, state in zip(layout.logit_lanes, hidden, strict=True):
                self.states.setdefault(lane, []).append(state)

    def follow(self, lane: Lane, drafted: int) -> None:
        """Read of ``lane`` what comes before the last ``drafted`` tokens whose logits there are."""
        assert lane.row is not None
        self.logits_rows[lane.row] += self.drafted.get(lane, 0) - drafted
        self.drafted[lane] = drafted

    def state(self, lane: Lane) -> Tensor:
        """[hidden], of the token whose logits are read."""
        assert self.states is not None
        return self.states[lane][-1 - self.drafted.get(lane, 0)]

    def joined(self) -> Tensor:
        """All logits so far, [rows, vocabulary]."""
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts)]
        return self.parts[0]


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
        self._layouts = LayoutBuilder(table, together=dispatch.on_gpu(table.coefficients))
        self._arange = torch.arange(self._layouts.most_keys, device=device)
        self._judge = PromptJudge(sampler.slot_tables, device)
        self._recorded: dict[WeightsKey, DecodeGraphs] = {}
        # Plain models alone are recorded: merged sets come and go, and a recording is made at the start.
        for name, key in models.plain.items() if graphs else ():
            model, cache = models.store.models[key], models.caches[name]
            router = models.router if name == models.router_model else None
            recording = record_decoding(model, cache, table, models.vocabulary, router)
            if recording is not None:
                self._recorded[key] = recording
        self._logits: _Logits | None = None
        self.step_rows = 0
        """Rows (tokens of all lanes, candidates) of the last step."""

    @property
    def recorded(self) -> bool:
        """Whether decode steps of some sizes are recorded."""
        return bool(self._recorded)

    def clear(self, blocks: list[int]) -> None:
        """Zero what the last owners of ``blocks`` left."""
        for cache in self.models.caches.values():
            cache.clear(blocks)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepResult:
        """Compute ``plan``; the weights of its lanes must be ready."""
        result = StepResult()
        self.step_rows = 0
        # The fast road: a pure decode step that one CUDA graph computes from token ids to tokens.
        draws = None if plan.drafts else self._replayed(plan)
        if draws is not None:
            result.draws = dict(zip(plan.sampling, draws, strict=True))
            return result
        drawing = [sequence for sequence in plan.sampling if sequence.draws]
        routes = any(sequence.request.plan.routing is not None for sequence in drawing)
        logits = _Logits(np.zeros(self.table.capacity, dtype=np.int64), states={} if routes else None)
        # The general road: forwards by weights, then experts, candidates and one draw. Lanes with drafts are chunks of
        # more than one token whose every position gives logits.
        drafts = self._draft_chunks(plan)
        decode = [lane for lane in plan.lanes if lane not in drafts] if drafts else plan.lanes
        self._forward(decode, [*drafts.values(), *(chunk for chunk in plan.chunks if chunk.sequence.draws)], logits)
        for lane, chunk in drafts.items():
            logits.follow(lane, len(chunk.drafted))
        self._value([chunk for chunk in plan.chunks if not chunk.sequence.draws], result)
        judged = [chunk for chunk in plan.chunks if chunk.judged]
        if judged:
            self._judge.judge(logits.joined(), logits.logits_rows, judged)
        self._logits = logits if drafts else None
        self._choose(drawing, logits, result)
        return result

    @torch.inference_mode()
    def again(self, sequences: Seq[Sequence]) -> StepResult:
        """One more token for each of ``sequences``, at least one, whose drafted token was drawn in the last step, from
        what that step computed."""
        # No forward: the logits behind the confirmed token are among those that the last step computed for its draft.
        result, logits = StepResult(), self._logits
        assert logits is not None
        for sequence in sequences:
            for lane in drafted_lanes(sequence):
                logits.follow(lane, logits.drafted[lane] - 1)
        self._choose(sequences, logits, result)
        return result

    def _draft_chunks(self, plan: StepPlan) -> dict[Lane, Chunk]:
        """What lanes compute that have drafted tokens: the one that is due, and these."""
        return {
            lane: Chunk(sequence, lane, int(self.table.computed[lane.row]), 1, True, drafted=draft)
            for sequence, draft in plan.drafts.items()
            for lane in drafted_lanes(sequence)
        }

    def _choose(self, drawing: Seq[Sequence], logits: _Logits, result: StepResult) -> None:
        """One token for each of ``drawing`` whose experts have all that it takes."""
        routed = [sequence for sequence in drawing if sequence.request.plan.routing is not None]
        turns = self._route(routed, logits, result) if routed else {}
        if turns:
            drawing = [sequence for sequence in drawing if sequence not in result.caught_up.behind]
        if drawing:
            self._draw(drawing, turns, logits, result)

    def _route(self, routed: Seq[Sequence], logits: _Logits, result: StepResult) -> dict[Sequence, ExpertTurn]:
        """Whose turn it is in ``routed``, and the logits of experts that had missed something."""
        assert self.models.router is not None
        turns = self.models.router.choose(routed, logits.state)
        result.caught_up = late = plan_catch_up(self.scheduler, {s: turn.lanes for s, turn in turns.items()})
        # What was recorded has its results in the same place every time, where this step's first ones still are.
        self._forward(*late.decode_and_prefill(), logits, recorded=False)
        return turns

    def _draw(
        self, drawing: Seq[Sequence], turns: Mapping[Sequence, ExpertTurn], forwarded: _Logits, result: StepResult
    ) -> None:
        """One token for each of ``drawing``, whose logits are all there; first the candidates are valued."""
        logits = forwarded.joined()
        scored = [sequence for sequence in drawing if sequence.request.plan.scorer is not None]
        values: dict[Sequence, CandidateValues] = {}
        if scored:
            allowed = self.sampler.allowed(scored, self.models.vocabulary)
            # One more forward over the candidates of all scored sequences, which attends to the shared context and
            # keeps nothing of what was not drawn.
            lay_out = self._layouts.build_candidates
            values = value_candidates(logits, forwarded.logits_rows, scored, lay_out, self._hidden, allowed)
        draws = self.sampler.draw(logits, forwarded.logits_rows, drawing, values, turns)
        if waiting := forwarded.watched.tensors():
            draws = with_watched(forwarded.watched.said(read(*waiting)), drawing, draws, forwarded.drafted)
        result.draws = dict(zip(drawing, draws, strict=True))
        if values:
            drawn_candidates = {sequence: result.draws[sequence].candidate_index for sequence in scored}
            result.kept = keep_chosen(values, drawn_candidates, self.table, self._cache)
        for sequence in drawing if turns else ():
            if sequence in turns:
                sequence.speaker = turns[sequence].speaker

    def _replayed(self, plan: StepPlan) -> list[Draw] | None:
        """The draws of a step that is one recording from its first layer to its tokens; None where it is not."""
        if not self._recorded or plan.chunks:
            return None
        keys = {lane.materialised for lane in plan.lanes}
        # All lanes of the step under one set of weights, or a recording of one model would compute only some of them.
        graphs = self._recorded.get(keys.pop()) if len(keys) == 1 else None
        if graphs is None or not graphs.draws or len(plan.lanes) > graphs.most_lanes:
            return None
        slot_tables = self.sampler.slot_tables
        if not slot_tables.recordable(plan.sampling, graphs.routes):
            return None
        layout = self._layouts.build(plan.lanes, [])
        size = graphs.size_for(layout)
        if size is None:
            return None
        self.step_rows += layout.tokens
        # In a recording row i of the logits is lane i of the layout.
        logits_rows = np.zeros(self.table.capacity, dtype=np.int64)
        logits_rows[layout.lane_rows] = np.arange(layout.tokens)
        tables = slot_tables.tables(plan.sampling, logits_rows)
        routes = slot_tables.routes(plan.sampling, logits_rows)
        output = graphs.run(layout, size, tables, routes)
        assert output.tokens is not None and output.logprobs is not None
        watched = WatchedStates()
        if layout.watch_indices is not None:
            seen = send_one(layout.watch_indices, output.hidden.device)
            watched.add(layout.watch_lanes, output.hidden.index_select(0, seen))
        # One read at the end: the host waits for the device here and nowhere else in a recorded step.
        wanted = [output.tokens, output.logprobs, *([] if output.speakers is None else [output.speakers])]
        tokens, logprobs, *rest = read(*wanted, *watched.tensors())
        draws = self.sampler.follow(plan.sampling, tokens.tolist(), logprobs.tolist())
        draws = with_watched(watched.said(rest[len(wanted) - 2 :]), plan.sampling, draws, {})
        if output.speakers is not None:
            for index, speaker in enumerate(zip(*rest[0].tolist(), strict=True)):
                draws[index] = _spoken(plan.sampling[index], speaker, draws[index])
        return draws

    def _forward(self, lanes: Seq[Lane], chunks: Seq[Chunk], into: _Logits, recorded: bool = True) -> None:
        """One forward per set of weights, ``recorded`` if that can be; what it gives is added to ``into``."""
        # Lanes whose weights differ only in bank coefficients share a forward: the key is what lives outside the bank.
        decode, prefill = _by_weights(chunks, lanes)
        for key in dict.fromkeys([*decode, *prefill]):
            layout = self._layouts.build(decode.get(key, []), prefill.get(key, []))
            lane = decode[key][0] if key in decode else prefill[key][0].lane
            graphs = self._recorded.get(key) if recorded and key not in prefill else None
            size = None if graphs is None else graphs.size_for(layout)
            self.step_rows += layout.tokens
            if graphs is None or size is None:
                sent = layout.send(self.table, self._arange)
                logits, hidden = self.models.store.models[key].forward(sent, self._context(lane, sent))
            else:
                run = graphs.run(layout, size)
                logits, hidden = run.logits, run.hidden
            into.add(layout, logits[:, : self.models.vocabulary], hidden)

    def _value(self, chunks: Seq[Chunk], result: StepResult) -> None:
        """Values of whole texts: the head on the last state of every lane."""
        final: list[Chunk] = []
        values: list[Tensor] = []
        for own in _by_weights(chunks, [])[1].values():
            states = self._hidden(own[0].lane, self._layouts.build([], own))
            # The forward's rows are the chunks' tokens one after the other; a text's value is read at its last token.
            stop = 0
            for chunk in own:
                stop += chunk.count
                if chunk.final:
                    assert chunk.lane.head is not None
                    final.append(chunk)
                    values.append(chunk.lane.head(states[stop - 1 : stop]))
        for chunk, value in zip(final, read(*values), strict=True):
            result.values.setdefault(chunk.sequence, {})[chunk.lane.source] = float(value)

    def _hidden(self, lane: Lane, layout: HostLayout, ids: Tensor | None = None) -> Tensor:
        self.step_rows += layout.tokens
        sent = layout.send(self.table, self._arange, ids)
        return self.models.store.models[lane.materialised].hidden(sent, self._context(lane, sent))

    def _context(self, lane: Lane, layout: StepLayout) -> PagedContext:
        widened = self.models.reproducible and self.models.activation_dtype == torch.bfloat16
        return PagedContext(self._cache(lane), layout.slot_mapping, layout.groups, layout.token_blocks, widened)

    def _cache(self, lane: Lane) -> KVCache:
        return self.models.caches[lane.source.model]


def _spoken(sequence: Sequence, speaker: tuple[int, int], draw: Draw) -> Draw:
    """``draw`` with the expert whose token it is, if ``sequence`` is routed; its next choice starts at ``speaker``."""
    routing = sequence.request.plan.routing
    if routing is None or speaker == sequence.speaker:  # nobody was asked
        return draw
    sequence.speaker = speaker
    return replace(draw, expert=sequence.lanes[routing.experts[speaker[0]]].source.name)


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
