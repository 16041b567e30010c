"""What rewards a family's answers get at every preference, as ``ladle calibrate`` measured and fitted them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ladle.merging.checkpoints.member_folder import member_folder
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.manifest import Manifest
from ladle.merging.family.manifest_tables import Finite
from ladle.merging.family.measurement_file import fingerprint_of, read_measured
from ladle.merging.family.surface import FITTED_METHOD, SURFACE_NAME, Surface, folders_of

CALIBRATION_NAME = "calibration.json"


class RewardResponse(BaseModel):
    """How one objective's mean reward follows the preference.

    Attributes:
        degree: of the polynomial, 2 or 3: whichever explained more.
        coefficients: of ``basis``.
        covariance: [p, p] of the coefficients, from a bootstrap over prompts.
        quantiles: rewards at equal steps of the quantiles 0 to 1 of all answers of the sweep, ascending.
        explained: share of the variance of the points' means that the fit explains, every point left out once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    degree: Annotated[int, Field(ge=2, le=3)]
    coefficients: list[Finite]
    covariance: list[list[Finite]]
    quantiles: list[Finite]
    explained: Finite


class Calibration(BaseModel):
    """``calibration.json`` of a family.

    Attributes:
        fingerprint: of the members it was measured on, see ``calibrated_on``.
        steering: the method and its options; a target holds for these alone.
        sampling: how the answers were drawn: temperature and the like.
        answers: how many there were.
        responses: by objective, in the family's order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    steering: dict[str, Any]
    sampling: dict[str, Any]
    answers: int
    responses: dict[str, RewardResponse]

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.responses)

    def rewards(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean rewards expected at preferences: float64 [points, objectives] of weights [points, objectives]."""
        terms = self._terms(weights)
        rewards = [terms[response.degree] @ np.array(response.coefficients) for response in self.responses.values()]
        return np.stack(rewards, axis=-1)

    def quantiles(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected rewards as quantiles: float64 [points, objectives], the share in [0, 1] of the sweep's answers with
        a smaller reward."""
        quantiles = [
            np.interp(rewards, *steps) for rewards, steps in zip(self.rewards(weights).T, self._steps, strict=True)
        ]
        return np.stack(quantiles, axis=-1)

    @cached_property
    def _steps(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return [_distinct(response.quantiles) for response in self.responses.values()]

    def deviations(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard errors of ``rewards``, same shape."""
        # Variance of a linear form: t^T Cov t for the terms t of every point.
        terms = self._terms(weights)
        spreads = [
            np.einsum("pi,ij,pj->p", terms[response.degree], np.array(response.covariance), terms[response.degree])
            for response in self.responses.values()
        ]
        return np.sqrt(np.clip(np.stack(spreads, axis=-1), 0.0, None))

    def _terms(self, weights: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
        """``basis`` of the degrees that there are."""
        return {degree: basis(weights, degree) for degree in {response.degree for response in self.responses.values()}}


def basis(weights: NDArray[np.float64], degree: int = 2) -> NDArray[np.float64]:
    """mu_i for all i, then mu_i mu_j for all i < j, and with degree 3 mu_i mu_j (mu_i - mu_j) for these and mu_i mu_j
    mu_k for i < j < k: float64 [points, basis_size] of weights [points, n]. The canonical polynomials of mixtures (H.
    Scheffe, Experiments with mixtures, 1958): on the simplex they are every quadratic, or every cubic."""
    n = weights.shape[1]
    pairs = list(itertools.combinations(range(n), 2))
    columns = [weights[:, i] * weights[:, j] for i, j in pairs]
    if degree == 3:
        columns += [weights[:, i] * weights[:, j] * (weights[:, i] - weights[:, j]) for i, j in pairs]
        columns += [weights[:, list(three)].prod(axis=1) for three in itertools.combinations(range(n), 3)]
    return np.column_stack([weights, *columns]) if columns else weights


def basis_size(n: int, degree: int = 2) -> int:
    """How many functions ``basis`` has for ``n`` objectives."""
    return math.comb(n + degree - 1, degree)


def quantile_of(rewards: NDArray[np.float64], quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Shares in [0, 1] of a distribution, given as its rewards at equal steps of the quantile, that lie below each of
    ``rewards``; in the middle of the share where many answers have the very same reward."""
    return np.asarray(np.interp(rewards, *_distinct(quantiles)), dtype=np.float64)


def _distinct(quantiles: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rewards among ``quantiles`` that differ, and the share of the distribution at the middle of each."""
    levels = np.linspace(0.0, 1.0, len(quantiles))
    values = np.asarray(quantiles, dtype=np.float64)
    distinct, first, counts = np.unique(values, return_index=True, return_counts=True)
    return distinct, (levels[first] + levels[first + counts - 1]) / 2


def weighed_folders(manifest: Manifest, root: Path) -> list[Path]:
    """Where the members lie that a preference weighs; a policy for one preference is none of them."""
    return [
        member_folder(entry.path, root)
        for kind, entry in manifest.members()
        if kind in ("backbone", "value") or getattr(entry, "objective", None) is not None
    ]


def calibrated_on(manifest: Manifest, root: Path, method: str) -> str:
    """Fingerprint of what a calibration of ``method`` is of: the members that a preference weighs; where coefficients
    come from a surface, that and its members. Raises FamilyError for a surface that cannot be read."""
    if method != FITTED_METHOD:
        return fingerprint_of(weighed_folders(manifest, root))
    surface = read_measured(root / SURFACE_NAME, Surface)
    members = [] if surface is None else surface.members
    return fingerprint_of(folders_of(manifest, root, members), [root / SURFACE_NAME])


def load_calibration(root: Path, manifest: Manifest) -> Calibration | None:
    """The calibration beside ``family.toml``; None where there is none, or where it is of members that have changed
    since, or of another response surface.

    Raises:
        FamilyError: unreadable, of other objectives, or of sizes that do not fit together.
    """
    file = root / CALIBRATION_NAME
    calibration = read_measured(file, Calibration)
    if calibration is None:
        return None
    if list(calibration.responses) != manifest.objectives:
        raise FamilyError(file, f"responses: {', '.join(calibration.responses)}; need {', '.join(manifest.objectives)}")
    for name, response in calibration.responses.items():
        size = basis_size(len(manifest.objectives), response.degree)
        square = [len(row) for row in response.covariance] == [size] * size
        if len(response.coefficients) != size or not square:
            raise FamilyError(file, f"responses.{name}: need {size} coefficients and their covariance")
        ascending = all(a <= b for a, b in itertools.pairwise(response.quantiles))
        if len(response.quantiles) < 2 or not ascending:
            raise FamilyError(file, f"responses.{name}.quantiles: need two or more, ascending")
    if not isinstance(calibration.steering.get("method"), str):
        raise FamilyError(file, "steering.method: missing")
    return (
        calibration
        if calibration.fingerprint == calibrated_on(manifest, root, calibration.steering["method"])
        else None
    )
