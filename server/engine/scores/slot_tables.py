"""What decides the draws of sequences and stays the same while they run, side by side by slot: a step gathers rows
instead of asking each sequence anew."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np

from ladle.guidance.plan import Plan
from ladle.kernels import step_tables as columns
from ladle.server.engine.device.transfers import Array
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.host_tables import HostBudgets, HostRanges, HostRoutes, HostTables

SOURCES = 8
"""Sources that a recorded step adds up for a sequence; those of weight 0 are not read."""
_RULES = {"linear": columns.LINEAR, "forward_kl": columns.DIVERGENCE, "alpha": columns.DIVERGENCE}
_MASK = (1 << 64) - 1


def draw_keys(seeds: Array, positions: Array) -> Array:
    """Two int32 words [n, 2] a (seed, position), by two rounds of splitmix64: nothing but these decides a draw."""
    with np.errstate(over="ignore"):
        x = seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        # splitmix64's finaliser over the seed, then over that and the position: neighbouring positions, and
        # neighbouring seeds, get unrelated keys.
        for extra in (np.uint64(0), positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)):
            x = x + extra
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x.view(np.int32).reshape(-1, 2)


class SlotTables:
    """Columns of ``StepTables`` for up to ``max_sequences``, as far as plan and sampling parameters decide them.

    Where the tables have a row of the logits, slots have a row of the lane table: a step says which is whose.
    """

    def __init__(self, max_sequences: int, experts: int = 0) -> None:
        """``experts``: of the family's router."""
        # One row per slot in every array, so that a step is a gather by slot. Rows of the lane table stand for rows of
        # the logits, which differ from step to step.
        self._int_params = np.zeros((max_sequences, columns.INT_PARAMS), dtype=np.int32)
        self._float_params = np.zeros((max_sequences, columns.FLOAT_PARAMS), dtype=np.float64)
        self._seeds = np.zeros(max_sequences, dtype=np.uint64)
        self._sources = np.zeros((max_sequences, SOURCES), dtype=np.int64)
        self._weights = np.zeros((max_sequences, SOURCES), dtype=np.float64)
        self._counts = np.zeros(max_sequences, dtype=np.int64)
        self._firsts = np.zeros(max_sequences, dtype=np.int64)
        self._masked = np.zeros(max_sequences, dtype=bool)
        self._budgets = np.zeros(max_sequences, dtype=np.float64)
        self._ranges = np.zeros((max_sequences, 2), dtype=np.float64)
        self._traced = np.zeros(max_sequences, dtype=bool)
        self._plain = np.ones(max_sequences, dtype=bool)
        self._truncates = np.zeros(max_sequences, dtype=bool)
        self._recordable = np.zeros(max_sequences, dtype=bool)
        self._routes = np.zeros(max_sequences, dtype=bool)
        self._experts = np.zeros((max_sequences, experts), dtype=np.int64)
        self._factors = np.zeros((max_sequences, 2), dtype=np.float32)
        self._thresholds = np.zeros(max_sequences, dtype=np.float64)
        self._stays = np.ones(max_sequences, dtype=np.int64)

    def admit(self, sequence: Sequence) -> None:
        """Take over plan and parameters of ``sequence``, which holds a slot and rows of the lane table."""
        slot, params, plan = sequence.slot, sequence.request.sampling, sequence.request.plan
        assert slot is not None
        self._seeds[slot] = params.seed & _MASK
        # What does not change from token to token is written once, when the sequence gets its slot; a step gathers
        # rows.
        _fill(params, plan, self._int_params[slot], self._float_params[slot])
        # The tables grow to the most sources that any admitted plan has had.
        lanes = _added_lanes(sequence)
        if len(lanes) > self._sources.shape[1]:
            more = ((0, 0), (0, len(lanes) - self._sources.shape[1]))
            self._sources, self._weights = np.pad(self._sources, more), np.pad(self._weights, more)
        self._sources[slot], self._weights[slot], self._counts[slot] = 0, 0.0, len(lanes)
        self._sources[slot, : len(lanes)] = _rows(lanes)
        self._weights[slot, : len(lanes)] = [lane.source.weight for lane in lanes]
        (self._firsts[slot],) = _rows(sequence.lanes[:1])
        self._masked[slot] = plan.mask is not None
        self._budgets[slot] = 0.0 if plan.kl_budget is None else plan.kl_budget
        self._ranges[slot] = params.dynatemp_range, params.dynatemp_exponent
        self._traced[slot] = plan.trace
        # What a step of such sequences may leave out: all tables but those of a linear sum; truncation; and, in a
        # recorded step, everything between the sum and the draw.
        asks = params.logit_bias or params.logprobs or params.dynatemp_range
        self._plain[slot] = not (plan.trace or plan.mask or plan.kl_budget or plan.rule != "linear" or asks)
        self._truncates[slot] = params.temperature > 0 and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)
        self._recordable[slot] = recordable = _recordable(sequence)
        self._routes[slot] = recordable and plan.routing is not None
        # Routed sequences read the router's row first; which expert joins it the recorded step decides itself.
        if recordable and plan.routing is not None:
            (self._sources[slot, 0],) = _rows([sequence.lanes[plan.routing.source]])
            self._experts[slot] = _rows([sequence.lanes[index] for index in plan.routing.experts])
            self._factors[slot] = plan.routing.factors(plan.normalize)
            self._thresholds[slot] = -np.inf if plan.routing.threshold is None else plan.routing.threshold
            self._stays[slot] = plan.routing.stay

    def recordable(self, sequences: Seq[Sequence], routes: bool) -> bool:
        """Whether a recorded step draws what each of ``sequences`` draws: from a sum of at most ``SOURCES`` sources,
        nothing ruled out before temperature and truncation, nothing asked for but the token. With ``routes`` the sum
        may be that of a router and the expert that it chooses."""
        slots = _slots(sequences)
        asked = any(sequence.asks_entropy for sequence in sequences)
        return not asked and bool((self._recordable[slots] & (routes | ~self._routes[slots])).all())

    def tables(self, sequences: Seq[Sequence], logits_rows: Array) -> HostTables:
        """What ``sequences``, at least one, draw from logits of which ``logits_rows`` [rows of the lane table] int64
        says the row of each lane. Fresh arrays."""
        slots = _slots(sequences)
        int_params, float_params = self._int_params[slots], self._float_params[slots]
        if float_params[:, columns.TEMPERATURE].any():
            # Counter-based random numbers: the key is (seed, place in the answer), whatever the batch or the lane.
            positions = np.fromiter((len(s.output) for s in sequences), dtype=np.int64, count=len(sequences))
            int_params[:, columns.KEYS] = draw_keys(self._seeds[slots], positions)
        width = max(1, int(self._counts[slots].max()))
        looked_at = self._traced[slots] | np.fromiter((s.asks_entropy for s in sequences), dtype=bool)
        plain, truncates = bool(self._plain[slots].all()), bool(self._truncates[slots].any())
        plain = plain and not looked_at.any()
        # Two gathers: slot -> lanes of its sources, lane -> row of this step's logits.
        sources, weights = logits_rows[self._sources[slots, :width]], self._weights[slots, :width]
        tables = HostTables(sources, weights, int_params, float_params, plain=plain, truncates=truncates)
        if plain:
            return tables
        firsts, budgets = logits_rows[self._firsts[slots]], self._budgets[slots]
        int_params[:, columns.BASE] = np.where(self._masked[slots], firsts, -1)
        # KL budgets concern few sequences, so they are a list of (sequence, base row, nats) and no column.
        limited = np.flatnonzero(budgets)
        kept = HostBudgets(limited, firsts[limited], budgets[limited])
        ranges = self._ranges[slots]
        warmed = np.flatnonzero(ranges[:, 0])
        warm = HostRanges(warmed, ranges[warmed, 0], ranges[warmed, 1])
        return replace(tables, budgets=kept, ranges=warm, traced=np.flatnonzero(looked_at))

    def foreseen(self, sequences: Seq[Sequence], logits_rows: Array, ahead: Seq[int]) -> HostTables:
        """What ``sequences``, at least one, draw ``ahead[i]`` tokens after the one that is due, were the logits in row
        ``logits_rows[i]`` their combined scores. Fresh arrays."""
        slots = _slots(sequences)
        int_params, float_params = self._int_params[slots], self._float_params[slots]
        int_params[:, columns.RULE], int_params[:, columns.WANTED] = columns.LINEAR, 0
        positions = np.fromiter((len(s.output) for s in sequences), dtype=np.int64, count=len(sequences))
        int_params[:, columns.KEYS] = draw_keys(self._seeds[slots], positions + np.asarray(ahead, dtype=np.int64))
        float_params[:, columns.SCALE] = 1.0
        ranges = self._ranges[slots]
        warmed = np.flatnonzero(ranges[:, 0])
        return HostTables(
            np.asarray(logits_rows, dtype=np.int64)[:, None],
            np.ones((len(sequences), 1)),
            int_params,
            float_params,
            ranges=HostRanges(warmed, ranges[warmed, 0], ranges[warmed, 1]),
            plain=not len(warmed) and not int_params[:, columns.BIASES].any(),
            truncates=bool(self._truncates[slots].any()),
        )

    def routes(self, sequences: Seq[Sequence], logits_rows: Array) -> HostRoutes | None:
        """What a recorded step is to know to choose experts, None where none of ``sequences`` routes; ``logits_rows``
        as in ``tables``."""
        slots = _slots(sequences)
        if not self._routes[slots].any():
            return None
        spoken = np.array([s.speaker for s in sequences], dtype=np.int64)
        return HostRoutes(
            self._routes[slots],
            np.concatenate((spoken, self._stays[slots, None]), axis=1),
            logits_rows[self._experts[slots]],
            self._factors[slots],
            self._thresholds[slots],
        )


def _slots(sequences: Seq[Sequence]) -> Array:
    """[sequences] int64."""
    return np.fromiter((s.slot for s in sequences), dtype=np.int64, count=len(sequences))


def _rows(lanes: Seq[Lane]) -> Array:
    return np.fromiter((lane.row for lane in lanes), dtype=np.int64, count=len(lanes))


def _added_lanes(sequence: Sequence) -> list[Lane]:
    """The language models whose scores are added up; those of a routed sequence take turns instead."""
    if sequence.request.plan.routing is not None:
        return []
    return [lane for lane in sequence.lanes if lane.speaks and lane.source.weight != 0]


def _recordable(sequence: Sequence) -> bool:
    """Whether there is nothing between the sum of few sources and the draw of ``sequence``, and nobody asks for more
    than the token. Experts may be among the sources if each has computed what it lacks when it is chosen."""
    plan, params = sequence.request.plan, sequence.request.sampling
    # Each of these needs a pass, a table or the host between the sum and the draw, which a recording has not.
    more = (plan.scorer, plan.mask, plan.kl_budget, sequence.request.grammar, sequence.request.thinking)
    if plan.rule != "linear" or plan.trace or any(part is not None for part in more):
        return False
    if plan.routing is not None and (plan.routing.top != 1 or any(lane.lazy for lane in sequence.lanes)):
        return False
    # An answer that may not end yet has a mask, unless there is nothing that could end it.
    held = params.min_tokens and not (params.ignore_eos and not params.stop_token_ids)
    asks = params.penalises or params.logit_bias or params.logprobs or params.dynatemp_range or held
    return sequence.draws and not asks and len(_added_lanes(sequence)) <= SOURCES


def _fill(params: SamplingParams, plan: Plan, int_params: Array, float_params: Array) -> None:
    # Whatever the last owner of the slot had is written over, every column of it.
    int_params[:] = 0
    int_params[columns.ABSENT] = -1
    int_params[columns.RULE] = _RULES[plan.rule]
    int_params[columns.TOP_K] = min(params.top_k, 2**31 - 1)
    int_params[columns.WANTED] = params.logprobs or 0
    int_params[columns.BIASES] = len(params.logit_bias)
    float_params[:] = 0.0
    float_params[columns.SCALE] = plan.alpha if plan.rule == "alpha" else 1.0
    float_params[columns.TEMPERATURE] = params.temperature
    float_params[columns.TOP_P] = params.top_p
    float_params[columns.MIN_P] = params.min_p
    float_params[columns.REPETITION] = params.repetition_penalty
    float_params[columns.PRESENCE] = params.presence_penalty
    float_params[columns.FREQUENCY] = params.frequency_penalty
    float_params[columns.MASK_TOP_P] = 1.0
    if plan.mask is not None and plan.mask.kind == "top_k":
        int_params[columns.MASK_TOP_K] = plan.mask.value
    elif plan.mask is not None:
        float_params[columns.MASK_TOP_P if plan.mask.kind == "top_p" else columns.MASK_RELATIVE] = plan.mask.value
