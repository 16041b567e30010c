"""From the samples of a sweep to how each reward follows the preference: what ``steering.target`` is resolved by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ladle.merging.family.calibration import Calibration, RewardResponse, basis, basis_size, quantile_of
from ladle.recipes.fits.regression import explained, solver
from ladle.recipes.sweeps.summary import RewardTable

LEVELS = 101
"""Quantiles that are kept: 0, .01, ..., 1."""


@dataclass(frozen=True)
class Agreement:
    """How one objective's mean rewards at preferences agree with what was expected of them.

    Attributes:
        points: how many preferences.
        gap: distance in quantiles, the mean of them.
        worst: the greatest.
        inside: at how many of the preferences it is within two standard errors, of the fit and of the measurement.
    """

    points: int
    gap: float
    worst: float
    inside: int


def fit(
    table: RewardTable, method: str, *, fingerprint: str, sampling: Mapping[str, Any], draws: int, seed: int
) -> Calibration:
    """Least squares of the mean reward at every preference on ``basis``, one objective at a time.

    Args:
        table: the sweep.
        method: which of its methods, as it was written there.
        fingerprint: of the family's members.
        sampling: how the sweep's answers were drawn.
        draws: bootstrap resamples of the prompts, for the coefficients' covariance.

    Raises:
        ValueError: the sweep has no such method, or fewer preferences than the fit has coefficients and two.
    """
    if method not in table.methods:
        raise ValueError(f"method: {method!r} is not allowed; allowed: {', '.join(table.methods)}, which the sweep has")
    settings, weights = table.places(method)
    rewards = table.raw[settings]  # [points, prompts, answers, objectives]
    designs = {degree: design for degree in (2, 3) if _enough(design := basis(weights, degree))}
    if not designs:
        allowed = f"{basis_size(len(table.objectives)) + 2} or more, all over the simplex"
        raise ValueError(f"sweep: {len(weights)} preferences are not allowed; allowed: {allowed}")
    picks = np.random.default_rng(seed).integers(rewards.shape[1], size=(draws, rewards.shape[1]))
    responses = {name: _response(designs, rewards[..., index], picks) for index, name in enumerate(table.objectives)}
    return Calibration(
        fingerprint=fingerprint,
        steering=_steering(table, method),
        sampling=dict(sampling),
        answers=int(rewards[..., 0].size),
        responses=responses,
    )


def check(calibration: Calibration, table: RewardTable) -> dict[str, Agreement]:
    """Compare, by objective, what another sweep got with what ``calibration`` expects at its preferences. A target is
    missed by as much, since it is met by the preference at which it is expected.

    Raises:
        ValueError: the sweep is of no method with the calibration's options.
    """
    methods = [method for method in table.methods if _steering(table, method) == calibration.steering]
    if not methods:
        said = ", ".join(f"{key} {value}" for key, value in calibration.steering.items())
        raise ValueError(f"check: {', '.join(table.methods)} is not allowed; allowed: a sweep of {said}")
    places, weights = table.places(methods[0])
    by_prompt = table.raw[places].mean(axis=2)  # [points, prompts, objectives]
    rewards, expected = by_prompt.mean(axis=1), calibration.rewards(weights)
    errors = np.hypot(by_prompt.std(axis=1, ddof=1) / by_prompt.shape[1] ** 0.5, calibration.deviations(weights))
    agreements = {}
    for place, (name, response) in enumerate(calibration.responses.items()):
        one, other = rewards[:, place], expected[:, place]
        gaps = np.abs(quantile_of(one, response.quantiles) - quantile_of(other, response.quantiles))
        inside = int((np.abs(one - other) <= 2 * errors[:, place]).sum())
        agreements[name] = Agreement(len(gaps), float(gaps.mean()), float(gaps.max()), inside)
    return agreements


def _steering(table: RewardTable, method: str) -> dict[str, Any]:
    return dict(next(setting.steering for setting in table.settings if setting.label == method))


def _enough(rows: NDArray[np.float64]) -> bool:
    """Whether so many preferences, where they are, tell all coefficients and two more would be left to check them."""
    return len(rows) >= rows.shape[1] + 2 and bool(np.linalg.matrix_rank(rows) == rows.shape[1])


def _response(
    bases: Mapping[int, NDArray[np.float64]], rewards: NDArray[np.float64], picks: NDArray[np.int64]
) -> RewardResponse:
    """``rewards`` [points, prompts, answers] of one objective, by the degree that explains more of points left out."""
    by_prompt = rewards.mean(axis=2)
    means = by_prompt.mean(axis=1)
    shares = {degree: explained(rows, means) for degree, rows in bases.items()}
    degree = max(shares, key=lambda each: shares[each])
    solve = solver(bases[degree])
    drawn = np.stack([solve @ by_prompt[:, own].mean(axis=1) for own in picks])
    levels = np.linspace(0.0, 1.0, LEVELS)
    return RewardResponse(
        degree=degree,
        coefficients=(solve @ means).tolist(),
        covariance=np.atleast_2d(np.cov(drawn, rowvar=False)).tolist(),
        quantiles=np.quantile(rewards, levels).tolist(),
        explained=shares[degree],
    )


def lines(calibration: Calibration, reachable: Mapping[str, Sequence[float]]) -> list[str]:
    """What was found, for people."""
    said = ", ".join(f"{key} {value}" for key, value in calibration.steering.items())
    text = [f"{calibration.answers} answers with {said}"]
    for name, response in calibration.responses.items():
        low, high = reachable[name]
        text.append(
            f"{name}: quantiles {low:.2f} to {high:.2f} can be asked for;"
            f" the fit explains {100 * response.explained:.0f} % of points left out"
        )
    return text
