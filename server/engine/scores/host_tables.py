"""The tables of a step as arrays of the host, as far as slots know them: what every form of a step starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ladle.server.engine.device.transfers import Array


class HostBudgets(NamedTuple):
    """``Budgets`` as arrays.

    Attributes:
        sequences, bases, nats: as there.
    """

    sequences: Array
    bases: Array
    nats: Array


class HostRanges(NamedTuple):
    """``Ranges`` as arrays.

    Attributes:
        warmed, spreads, exponents: as there.
    """

    warmed: Array
    spreads: Array
    exponents: Array


_NO_RANGES = HostRanges(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
_NO_BUDGETS = HostBudgets(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))


@dataclass(frozen=True)
class HostTables:
    """Columns of ``StepTables`` for n sequences.

    Attributes:
        source_rows: [n, k] int64, of the logits, of the sources that are added up; padded with any row.
        weights: [n, k] float64, padded with 0.
        int_params: [n, INT_PARAMS] int32.
        float_params: [n, FLOAT_PARAMS] float64.
        budgets: the KL budgets.
        ranges: whose temperatures follow their entropy.
        traced: [t] int64, the sequences whose combined scores are looked at: those that are traced, and those that ask
            for an entropy.
        plain: whether slots know of nothing but linear sums and the draws from them.
        truncates: whether a sequence may draw at random from less than all tokens.
    """

    source_rows: Array
    weights: Array
    int_params: Array
    float_params: Array
    budgets: HostBudgets = _NO_BUDGETS
    ranges: HostRanges = _NO_RANGES
    traced: Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    plain: bool = False
    truncates: bool = True


@dataclass(frozen=True)
class HostRoutes:
    """What ``route_rows`` is to know of n sequences of a recorded step. A router is the first source of its sequence.

    Attributes:
        routes: [n] bool, whether a router chooses the expert that is added to it.
        history: [n, 3] int64, (previous, stayed, stay) of ``route_tokens``.
        experts: [n, experts] int64, rows of the logits.
        factors: [n, 2] float32, (complement, weight).
        thresholds: [n] float64, of the chance that an expert is asked, -inf for always.
    """

    routes: Array
    history: Array
    experts: Array
    factors: Array
    thresholds: Array
