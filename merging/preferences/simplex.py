"""Preferences to look at: points of the simplex over some objectives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Point = tuple[float, ...]


def grid(objectives: int, steps: int) -> list[Point]:
    """All weights that are multiples of 1 / ``steps``, the first objective's falling: C(steps + objectives - 1,
    objectives - 1) points. One objective has one point.

    Raises:
        ValueError: fewer than one step or objective.
    """
    if steps < 1 or objectives < 1:
        raise ValueError(f"steps {steps} and objectives {objectives} are not allowed; allowed: 1 or more of each")
    points = []
    # Stars and bars: the gaps between the bars are the weights, in steps.
    for bars in itertools.combinations(range(steps + objectives - 1), objectives - 1):
        edges = (-1, *bars, steps + objectives - 1)
        points.append(tuple((after - before - 1) / steps for before, after in itertools.pairwise(edges)))
    return points[::-1]


def dirichlet(objectives: int, count: int, seed: int) -> list[Point]:
    """The corners, and then as many points drawn evenly from the simplex (Dirichlet with all parameters 1) as make
    ``count`` of them in all; six decimals, so that a file shows exactly what was asked for.

    Raises:
        ValueError: ``count`` is smaller than the number of corners.
    """
    if count < objectives:
        raise ValueError(f"{count} points are not allowed; allowed: {objectives}, the number of corners, or more")
    corners = [tuple(float(i == j) for j in range(objectives)) for i in range(objectives)]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(objectives), size=count - objectives)
    return [*corners, *(_rounded(point) for point in drawn)]


def _rounded(point: Sequence[float]) -> Point:
    head = [round(float(weight), 6) for weight in point[:-1]]
    return (*head, round(1.0 - sum(head), 6))
