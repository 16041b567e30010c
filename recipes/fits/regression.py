"""Least squares of what was measured at points, and how well it foretells a point that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def solver(rows: Array, counts: Array | None = None) -> Array:
    """What takes values at the points to the coefficients that fit them best, float64 [terms, points].

    Args:
        rows: the terms at each point, [points, terms].
        counts: how many answers each point's value is the mean of; alike if not given.
    """
    scale = np.ones(len(rows)) if counts is None else np.sqrt(counts)
    return np.asarray(np.linalg.pinv(rows * scale[:, None]) * scale)


def explained(rows: Array, values: Array, counts: Array | None = None) -> float:
    """1 - sum (y - y without itself)^2 / sum (y - mean y)^2 over the points' ``values`` [points], each foretold from
    the others and weighed by its count; 0 where all are the same."""
    counts = np.ones(len(rows)) if counts is None else counts
    hat = rows @ solver(rows, counts)
    left_out = (values - hat @ values) / np.clip(1.0 - np.diag(hat), 1e-9, None)
    spread = float((counts * (values - np.average(values, weights=counts)) ** 2).sum())
    return 1.0 - float((counts * left_out**2).sum()) / spread if spread > 0 else 0.0


def require_explained(shares: Mapping[str, float], objectives: Sequence[str], force: bool) -> None:
    """Refuse a fit that foretells an objective's reward no better than the mean of all points does.

    Args:
        shares: of ``explained``, by name.
        force: let it pass.

    Raises:
        ValueError: naming the objective.
    """
    worst = min(objectives, key=lambda name: shares[name])
    # 0 is a reward that is the same everywhere, of which there is nothing to explain.
    if shares[worst] < 0 and not force:
        told = f"the fit explains nothing of {worst} ({100 * shares[worst]:.0f} % of its variance at points left out)"
        raise ValueError(f"sweep: {told}; sweep more prompts or preferences, or write it all the same with --force")
