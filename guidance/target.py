"""``steering.target``: from the rewards that are wanted to the preference that gets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ladle.guidance.outcome import Outcome
from ladle.guidance.plan import Steering
from ladle.merging.exceptions import InputError
from ladle.merging.family.calibration import Calibration, quantile_of
from ladle.merging.family.family import Family
from ladle.merging.preferences.simplex import grid

TOLERANCE = 0.02
"""How far, in quantiles, an objective may end up from its target for the target to count as reached."""
_UNEVENNESS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""What unevenness costs, in squared quantiles. The last is far below any gap that matters and chooses among preferences
that do equally well; the others lead there, since the way along those that do is too narrow to be found at once."""
_POINTS = 4000
"""Preferences that the search starts from, at most."""


@dataclass(frozen=True)
class Reached:
    """A preference that was found for a target.

    Attributes:
        preference: weight by objective.
        outcomes: what each objective is expected to get there.
    """

    preference: dict[str, float]
    outcomes: dict[str, Outcome]


def resolve_target(family: Family, steering: Steering) -> tuple[Steering, Reached]:
    """``steering`` with a preference in place of its target.

    Raises:
        InputError: the family is not calibrated, or for another method or other options than the request asks for; an
            unknown objective or no quantile; a preference beside the target; or nothing reaches the target, with the
            nearest that can be reached.
    """
    target = steering.target
    assert target is not None
    calibration = family.calibration
    if calibration is None:
        reason = "this family, with its members as they are, is not calibrated (ladle calibrate)"
        raise InputError("steering.target", dict(target), reason=reason)
    for key in ("preference", "coefficients", "terms"):
        if getattr(steering, key) is not None:
            reason = f"it cannot stand beside steering.{key}, which says it already"
            raise InputError("steering.target", dict(target), reason=reason)
    # A calibration holds for one method and its options: a request may repeat them, or leave them out.
    calibrated = Steering.parse({**calibration.steering, "trace": steering.trace})
    given = replace(steering, target=None, method=steering.method or calibrated.method)
    if given not in (calibrated, Steering(method=calibrated.method, trace=steering.trace)):
        said = ", ".join(f"{key} {value}" for key, value in calibration.steering.items())
        reason = f"it is possible only with {said}, which the family is calibrated for"
        raise InputError("steering.target", dict(target), reason=reason)
    reached = reach(calibration, target)
    return replace(calibrated, preference=reached.preference), reached


def reach(calibration: Calibration, target: Mapping[str, Any]) -> Reached:
    """The preference at which the expected quantiles come closest to ``target``; of several the most even one.

    Args:
        target: quantile in [0, 1] by objective; objectives that it does not name are free.

    Raises:
        InputError: see ``resolve_target``.
    """
    objectives = calibration.objectives
    for name, wanted in target.items():
        if name not in objectives:
            raise InputError(f"steering.target.{name}", wanted, f"the objectives {', '.join(objectives)}")
        if not isinstance(wanted, (int, float)) or isinstance(wanted, bool) or not 0 <= wanted <= 1:
            raise InputError(f"steering.target.{name}", wanted, "a quantile from 0 to 1")
    if not target:
        raise InputError("steering.target", dict(target), f"a quantile for one of {', '.join(objectives)} or more")
    named = [objectives.index(name) for name in target]
    wanted = np.array([float(value) for value in target.values()])

    def misfit(weights: NDArray[np.float64], unevenness: float) -> NDArray[np.float64]:
        # Squared gaps of the named objectives, and a price for unevenness that chooses among preferences which do
        # equally well.
        gaps = calibration.quantiles(weights)[:, named] - wanted
        return np.asarray((gaps**2).sum(axis=1) + unevenness * (weights**2).sum(axis=1))

    points = _spread(len(objectives))
    # Continuation: the price falls step by step, and each search starts from the best so far beside the grid.
    for unevenness in _UNEVENNESS:
        best = _descend(points, partial(misfit, unevenness=unevenness))
        points = np.vstack([points, best])
    reached = _outcomes(calibration, best, target)
    if any(abs(reached.outcomes[name].quantile - float(value)) > TOLERANCE for name, value in target.items()):
        rewards = {name: round(reached.outcomes[name].quantile, 3) for name in target}
        weights = {name: round(weight, 3) for name, weight in reached.preference.items()}
        reason = f"no preference reaches it; nearest is {rewards}, with preference {weights}"
        raise InputError("steering.target", dict(target), reason=reason)
    return reached


def reachable(calibration: Calibration) -> dict[str, tuple[float, float]]:
    """Least and greatest expected quantile of every objective over all preferences."""
    quantiles = calibration.quantiles(_spread(len(calibration.objectives)))
    pairs = zip(quantiles.min(axis=0).tolist(), quantiles.max(axis=0).tolist(), strict=True)
    return dict(zip(calibration.objectives, pairs, strict=True))


def _outcomes(calibration: Calibration, weights: NDArray[np.float64], target: Mapping[str, Any]) -> Reached:
    point = weights[None]
    rewards, errors = calibration.rewards(point)[0], calibration.deviations(point)[0]
    outcomes = {}
    for place, (name, response) in enumerate(calibration.responses.items()):
        # The expectation and two standard errors either way, as quantiles.
        around = rewards[place] + np.array([0.0, -2.0, 2.0]) * errors[place]
        middle, low, high = quantile_of(around, response.quantiles).tolist()
        wanted = float(target[name]) if name in target else None
        outcomes[name] = Outcome(wanted, middle, low, high, float(rewards[place]))
    return Reached(dict(zip(calibration.objectives, weights.tolist(), strict=True)), outcomes)


@cache
def _spread(n: int) -> NDArray[np.float64]:
    """The finest grid on the simplex of ``n`` objectives with at most ``_POINTS`` points, float64 [points, n]."""
    steps = 1
    while comb(steps + n, n - 1) <= _POINTS and steps < 200:
        steps += 1
    return np.array(grid(n, steps), dtype=np.float64)


def _descend(points: NDArray[np.float64], misfit: Any) -> NDArray[np.float64]:
    """The best of ``points``, improved by moving weight from one objective to another in ever smaller steps."""
    best = points[int(np.argmin(misfit(points)))]
    n, step = len(best), 0.1
    # All n (n - 1) ways to move weight from one objective to another: the sum stays 1.
    moves = np.array([np.eye(n)[i] - np.eye(n)[j] for i in range(n) for j in range(n) if i != j]).reshape(-1, n)
    while step > 1e-6 and n > 1:
        tried = best + step * moves
        tried = tried[(tried >= 0).all(axis=1)]
        values = misfit(np.vstack([best, tried]))
        place = int(np.argmin(values))
        if place == 0:
            step /= 2
        else:
            best = tried[place - 1]
    return best
