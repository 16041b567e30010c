"""From the samples of sweeps to how rewards follow merge coefficients: what ``fitted_soup`` chooses its own by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ladle.guidance.methods.merging_method import MergingMethod
from ladle.guidance.registry import METHODS
from ladle.merging.family.manifest import Manifest
from ladle.merging.family.measurement_file import fingerprint_of
from ladle.merging.family.surface import Surface, folders_of, quadratic
from ladle.recipes.fits.regression import explained, solver
from ladle.recipes.sweeps.summary import REFERENCE, RewardTable, standardised


@dataclass(frozen=True)
class Measurement:
    """What one setting of a sweep came to.

    Attributes:
        coefficients: by member.
        heights: rewards above their floors, float64 [objectives], see ``Surface``.
        surprise: nats a token more than the base's own answers; None where the base judged none of the answers.
        answers: how many there were.
    """

    coefficients: Mapping[str, float]
    heights: NDArray[np.float64]
    surprise: float | None
    answers: int


def measurements(
    table: RewardTable, merges: Mapping[str, Mapping[str, float]], methods: Sequence[str], own: NDArray[np.float64]
) -> list[Measurement]:
    """The base and every setting of those of ``methods`` that the sweep has.

    Args:
        merges: merge coefficients by member, by the setting's key, as the sweep was answered with them.
        own: rewards of the base's own answers, [answers, objectives]: the same for sweeps that are fitted together.
    """
    sound, usual = table.sound(standardised(table.raw, own)), table.surprise(table.base)
    rows = []
    for index, setting in enumerate(table.settings):
        if setting.weights and setting.label not in methods:
            continue
        heights = sound[index].reshape(-1, len(table.objectives)).mean(axis=0) - REFERENCE
        surprise = table.surprise(index)
        more = None if surprise is None or usual is None else surprise - usual
        rows.append(Measurement(merges[setting.key], heights, more, table.degenerate[index].size))
    return rows


def choose(tables: Sequence[RewardTable], methods: Sequence[str] | None) -> list[str]:
    """``methods`` of the sweeps; without them all whose whole effect is merged weights.

    Raises:
        ValueError: one that no sweep has, or that does not only merge weights.
    """
    named = {
        setting.label: setting.steering["method"] for table in tables for setting in table.settings if setting.weights
    }
    merging = [label for label, name in named.items() if isinstance(METHODS.get(name), MergingMethod)]
    for method in methods or ():
        if method not in merging:
            more = ", it does more than merge weights" if method in named else ""
            raise ValueError(f"methods: {method!r} is not allowed{more}; allowed: {', '.join(merging) or 'none'}")
    return list(methods or merging)


def fit_surface(
    measured: Sequence[Measurement],
    manifest: Manifest,
    root: Path,
    *,
    most_surprise: float,
    order: float,
    sampling: Mapping[str, Any],
) -> Surface:
    """Least squares on ``quadratic`` of the coefficients, a reward at a time; settings weigh as many answers as they
    have.

    Args:
        measured: of one or more sweeps.
        root: the family's folder.
        most_surprise, order: see ``Surface``.
        sampling: how the answers were drawn.

    Raises:
        ValueError: nothing but the base; answers that the base did not judge; or too few settings for the fit, or not
            all over the space of their coefficients.
    """
    named = {name for one in measured for name, value in one.coefficients.items() if value != 0.0}
    members = [entry.name for _, entry in manifest.members() if entry.name in named]
    if lost := sorted(named.difference(members)):
        raise ValueError(f"sweep: member {lost[0]!r} is not allowed; allowed: a sweep of the family as it is now")
    if not members:
        raise ValueError("sweep: nothing but the base is not allowed; allowed: methods that merge weights")
    judged = [one.surprise for one in measured if one.surprise is not None]
    if len(judged) < len(measured):
        raise ValueError("sweep: answers without perplexity are not allowed; allowed: --perplexity-answers 1 or more")
    points = np.array([[one.coefficients.get(name, 0.0) for name in members] for one in measured])
    rows = quadratic(points)
    least = rows.shape[1] + 2
    if len(rows) < least:
        allowed = f"{least} or more, to fit how {len(members)} members ({', '.join(members)}) work together"
        raise ValueError(f"sweep: {len(rows)} settings are not allowed; allowed: {allowed}")
    if np.linalg.matrix_rank(rows) < rows.shape[1]:
        allowed = f"settings that mix all of {', '.join(members)}; --method says which methods are fitted"
        raise ValueError(f"sweep: members that are never merged with each other are not allowed; allowed: {allowed}")
    counts = np.array([one.answers for one in measured], dtype=np.float64)
    solve, heights = solver(rows, counts), np.array([one.heights for one in measured])
    values = {name: heights[:, place] for place, name in enumerate(manifest.objectives)}
    surprises = np.array(judged)
    return Surface(
        fingerprint=fingerprint_of(folders_of(manifest, root, members)),
        members=members,
        sampling=dict(sampling),
        answers=sum(one.answers for one in measured),
        design=points.tolist(),
        rewards={name: (solve @ value).tolist() for name, value in values.items()},
        surprise=(solve @ surprises).tolist(),
        most_surprise=most_surprise,
        order=order,
        explained={name: explained(rows, value, counts) for name, value in (values | {"surprise": surprises}).items()},
    )


def lines(surface: Surface, preferences: Iterable[Sequence[float]]) -> list[str]:
    """What was found, for people: how good the fit is, and what some preferences come to."""
    text = [f"{surface.answers} answers with {len(surface.design)} merges of {', '.join(surface.members)}"]
    for name, share in surface.explained.items():
        text.append(f"{name}: the fit explains {100 * share:.0f} % of merges left out")
    for weights in preferences:
        best = surface.best(weights)
        point = np.array([best])
        heights, surprise = surface.heights(point)[0] + REFERENCE, float(surface.surprises(point)[0])
        wanted = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(surface.rewards, weights, strict=True))
        expected = ", ".join(f"{name} {height:+.2f}" for name, height in zip(surface.rewards, heights, strict=True))
        merged = ", ".join(f"{value:+.2f}" for value in best)
        text.append(f"{wanted}: coefficients {merged}; expected z {expected}; perplexity x {np.exp(surprise):.2f}")
    return text
