"""What decides the draws of sequences and stays the same while they run, side by side by slot: a step gathers rows
instead of asking each sequence anew."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from ladle.guidance.plan import Routing
from ladle.kernels import step_tables as columns
from ladle.server.engine.device.transfers import Array
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.scores.combiner import added_lanes
from ladle.server.engine.scores.tables import HostRoutes, HostTables

SOURCES = 8
"""Sources that a sequence may add up for its slot to hold all of its plan; those of weight 0 are not read."""
_MASK = (1 << 64) - 1


def draw_keys(seeds: Array, positions: Array) -> Array:
    """Two int32 words [n, 2] a (seed, position), by two rounds of splitmix64: nothing but these decides a draw."""
    with np.errstate(over="ignore"):
        x = seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for extra in (np.uint64(0), positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)):
            x = x + extra
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x.view(np.int32).reshape(-1, 2)


class SlotTables:
    """Columns of ``StepTables`` for up to ``slots`` sequences: ``choices`` [slots, CHOICES] int32 and ``numbers``
    [slots, NUMBERS] float32, as far as sampling parameters decide them; all else is off."""

    def __init__(self, slots: int, experts: int = 0) -> None:
        """``experts``: of the family's router."""
        self.choices = np.zeros((slots, columns.CHOICES), dtype=np.int32)
        self.numbers = np.zeros((slots, columns.NUMBERS), dtype=np.float32)
        self._seeds = np.zeros(slots, dtype=np.uint64)
        self._adds = np.zeros(slots, dtype=bool)
        self._lanes = np.zeros((slots, SOURCES), dtype=np.int64)
        self._weights = np.zeros((slots, SOURCES), dtype=np.float32)
        self._routes = np.zeros(slots, dtype=bool)
        self._experts = np.zeros((slots, experts), dtype=np.int64)
        self._factors = np.zeros((slots, 2), dtype=np.float32)
        self._thresholds = np.zeros(slots, dtype=np.float64)
        self._stays = np.ones(slots, dtype=np.int64)

    def admit(self, sequence: Sequence) -> None:
        """Take over the parameters of ``sequence``, which holds a slot and rows of the lane table."""
        slot, params = sequence.slot, sequence.request.sampling
        assert slot is not None
        self._seeds[slot] = params.seed & _MASK
        _fill(params, self.choices[slot], self.numbers[slot])
        only = _only_draws(sequence)
        routing = sequence.request.plan.routing
        self._routes[slot] = only and routing is not None and _adds_one(sequence, routing)
        lanes = added_lanes(sequence)
        self._adds[slot] = only and routing is None and len(lanes) <= SOURCES
        self._lanes[slot] = 0
        self._weights[slot] = 0.0
        if self._adds[slot]:
            self._lanes[slot, : len(lanes)] = _rows(lanes)
            self._weights[slot, : len(lanes)] = [lane.source.weight for lane in lanes]
        if self._routes[slot]:
            assert routing is not None
            self._lanes[slot, :1] = _rows([sequence.lanes[routing.source]])
            self._experts[slot] = _rows([sequence.lanes[index] for index in routing.experts])
            self._factors[slot] = routing.factors(sequence.request.plan.normalize)
            self._thresholds[slot] = -np.inf if routing.threshold is None else routing.threshold
            self._stays[slot] = routing.stay

    def columns_of(self, sequences: Seq[Sequence]) -> tuple[Array, Array]:
        """Fresh rows of ``choices``, with the keys of the next draws, and of ``numbers``."""
        slots = slots_of(sequences)
        positions = np.fromiter((len(s.output) for s in sequences), dtype=np.int64, count=len(sequences))
        choices = self.choices[slots]
        choices[:, columns.KEYS] = draw_keys(self._seeds[slots], positions)
        return choices, self.numbers[slots]

    def adds(self, sequences: Seq[Sequence], routes: bool) -> bool:
        """Whether each draws from a sum of at most ``SOURCES`` sources and nothing else: nothing rules tokens out
        before temperature and truncation, nothing but the token is asked for. With ``routes`` the sum may be that of
        a router and the expert it chooses."""
        slots = slots_of(sequences)
        return bool((self._adds[slots] | (self._routes[slots] & routes)).all())

    def tables(self, sequences: Seq[Sequence], places: Array) -> HostTables:
        """What ``sequences``, which add sources, draw from logits in which ``places`` is the row of each lane, by its
        row of the lane table."""
        slots = slots_of(sequences)
        choices, numbers = self.columns_of(sequences)
        routed = None
        if self._routes[slots].any():
            spoken = np.array([s.speaker for s in sequences], dtype=np.int64)
            routed = HostRoutes(
                self._routes[slots],
                np.concatenate((spoken, self._stays[slots, None]), axis=1),
                places[self._experts[slots]],
                self._factors[slots],
                self._thresholds[slots],
            )
        sources = places[self._lanes[slots]]
        return HostTables(sources, self._weights[slots], choices, numbers, routed)


def slots_of(sequences: Seq[Sequence]) -> Array:
    """[sequences] int64."""
    return np.fromiter((s.slot for s in sequences), dtype=np.int64, count=len(sequences))


def _rows(lanes: Seq[Lane]) -> Array:
    return np.fromiter((lane.row for lane in lanes), dtype=np.int64, count=len(lanes))


def _only_draws(sequence: Sequence) -> bool:
    """Whether there is nothing between the sum of its sources and the draw of ``sequence``, and nobody asks for more
    than the token."""
    plan, params = sequence.request.plan, sequence.request.sampling
    more = (plan.scorer, plan.mask, plan.kl_budget, sequence.request.grammar)
    if plan.rule != "linear" or plan.trace or any(part is not None for part in more):
        return False
    return sequence.draws and not (params.penalises or params.logit_bias or params.logprobs)


def _adds_one(sequence: Sequence, routing: Routing) -> bool:
    """Whether every expert has computed what it lacks when the router chooses one of them, so that a sum of logits does
    (a constant off, which nothing but a repetition penalty sees)."""
    return routing.top == 1 and not any(lane.lazy for lane in sequence.lanes)


def _fill(params: SamplingParams, choices: Array, numbers: Array) -> None:
    choices[:] = 0
    choices[columns.ABSENT] = -1
    choices[columns.TOP_K] = min(params.top_k, 2**31 - 1)
    choices[columns.WANTED] = params.logprobs or 0
    choices[columns.BIASES] = len(params.logit_bias)
    numbers[:] = 0.0
    numbers[[columns.SCALE, columns.MASK_TOP_P]] = 1.0
    numbers[columns.TEMPERATURE] = params.temperature
    numbers[columns.TOP_P] = params.top_p
    numbers[columns.MIN_P] = params.min_p
    numbers[columns.REPETITION] = params.repetition_penalty
    numbers[columns.PRESENCE] = params.presence_penalty
    numbers[columns.FREQUENCY] = params.frequency_penalty
