"""What decides the draws of sequences and stays the same while they run, side by side by slot: a step gathers rows
instead of asking each sequence anew."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from ladle.kernels import step_tables as columns
from ladle.server.engine.combiner import added_lanes
from ladle.server.engine.plan_tables import HostTables
from ladle.server.engine.sampling import SamplingParams
from ladle.server.engine.sequence import Lane, Sequence
from ladle.server.engine.transfers import Array

SOURCES = 8
"""Sources that a sequence may add up for its slot to hold all of its plan; those of weight 0 are not read."""
_MASK = (1 << 64) - 1
_NONE = [columns.BASE, columns.COUNTED, columns.ALLOWED]
_KEYS = [columns.KEY_0, columns.KEY_1]


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

    def __init__(self, slots: int) -> None:
        self.choices = np.zeros((slots, columns.CHOICES), dtype=np.int32)
        self.numbers = np.zeros((slots, columns.NUMBERS), dtype=np.float32)
        self._seeds = np.zeros(slots, dtype=np.uint64)
        self._adds = np.zeros(slots, dtype=bool)
        self._lanes = np.zeros((slots, SOURCES), dtype=np.int64)
        self._weights = np.zeros((slots, SOURCES), dtype=np.float32)

    def admit(self, sequence: Sequence) -> None:
        """Take over the parameters of ``sequence``, which holds a slot and rows of the lane table."""
        slot, params = sequence.slot, sequence.request.sampling
        assert slot is not None
        self._seeds[slot] = params.seed & _MASK
        _fill(params, self.choices[slot], self.numbers[slot])
        lanes = _added(sequence)
        self._adds[slot] = lanes is not None
        self._lanes[slot] = 0
        self._weights[slot] = 0.0
        for place, lane in enumerate(lanes or ()):
            assert lane.row is not None
            self._lanes[slot, place] = lane.row
            self._weights[slot, place] = lane.source.weight

    def keys(self, sequences: Seq[Sequence]) -> Array:
        """Keys of the next draws, [sequences, 2] int32."""
        positions = np.fromiter((len(s.output) for s in sequences), dtype=np.int64, count=len(sequences))
        return draw_keys(self._seeds[slots_of(sequences)], positions)

    def adds(self, sequences: Seq[Sequence]) -> bool:
        """Whether each draws from a sum of at most ``SOURCES`` sources and nothing else: nothing rules tokens out
        before temperature and truncation, nobody takes turns, nothing but the token is asked for."""
        return bool(self._adds[slots_of(sequences)].all())

    def tables(self, sequences: Seq[Sequence], places: Array) -> HostTables:
        """What ``sequences``, which add sources, draw from logits in which ``places`` is the row of each lane, by its
        row of the lane table."""
        slots = slots_of(sequences)
        choices, nothing = self.choices[slots], np.zeros((len(slots), 0))
        choices[:, _KEYS] = self.keys(sequences)
        return HostTables(
            places[self._lanes[slots]], self._weights[slots], choices, self.numbers[slots], nothing, nothing
        )


def slots_of(sequences: Seq[Sequence]) -> Array:
    """[sequences] int64."""
    return np.fromiter((s.slot for s in sequences), dtype=np.int64, count=len(sequences))


def _added(sequence: Sequence) -> list[Lane] | None:
    """The lanes whose sum is all that ``sequence`` draws from; None where there is more to it, or too many of them."""
    plan, params = sequence.request.plan, sequence.request.sampling
    more = (plan.routing, plan.scorer, plan.mask, plan.kl_budget, sequence.request.grammar)
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    if plan.rule != "linear" or plan.trace or any(part is not None for part in more):
        return None
    if penalties or params.logit_bias or params.logprobs or not sequence.draws:
        return None
    lanes = [lane for lane in added_lanes(sequence) if lane.source.weight != 0]
    return lanes if len(lanes) <= SOURCES else None


def _fill(params: SamplingParams, choices: Array, numbers: Array) -> None:
    choices[:] = 0
    choices[_NONE] = -1
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
