"""What rewards a family's answers get at every preference, as ``ladle calibrate`` measured and fitted them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ladle.merging.errors import FamilyError
from ladle.merging.manifest import Manifest
from ladle.merging.manifest_tables import Finite

CALIBRATION_NAME = "calibration.json"
_WHOLE = 256 << 20
"""Bytes up to which a member's file counts with its contents; of a larger one, which takes long to read, the size."""


class Response(BaseModel):
    """How one objective's mean reward follows the preference.

    Attributes:
        coefficients: of ``basis``.
        covariance: [p, p] of the coefficients, from a bootstrap over prompts.
        quantiles: rewards at equal steps of the quantiles 0 to 1 of all answers of the sweep, ascending.
        explained: share of the variance of the points' means that the fit explains, every point left out once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    coefficients: list[Finite]
    covariance: list[list[Finite]]
    quantiles: list[Finite]
    explained: Finite


class Calibration(BaseModel):
    """``calibration.json`` of a family.

    Attributes:
        fingerprint: of the members it was measured on, see ``fingerprint_of``.
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
    responses: dict[str, Response]

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.responses)

    def rewards(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean rewards expected at preferences: float64 [points, objectives] of weights [points, objectives]."""
        fitted = np.array([response.coefficients for response in self.responses.values()])
        return basis(weights) @ fitted.T

    def quantiles(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same as shares in [0, 1] of the sweep's answers with a smaller reward."""
        return np.stack(
            [
                quantile_of(rewards, response.quantiles)
                for rewards, response in zip(self.rewards(weights).T, self.responses.values(), strict=True)
            ],
            axis=-1,
        )

    def deviations(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard errors of ``rewards``, same shape."""
        rows = basis(weights)
        spreads = [
            np.einsum("pi,ij,pj->p", rows, np.array(response.covariance), rows) for response in self.responses.values()
        ]
        return np.sqrt(np.clip(np.stack(spreads, axis=-1), 0.0, None))


def basis(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """mu_i for all i, then mu_i mu_j for all i < j: float64 [points, n (n + 1) / 2] of weights [points, n]. The
    quadratic canonical polynomial of mixtures (H. Scheffe, Experiments with mixtures, 1958); on the simplex it is every
    quadratic."""
    pairs = [weights[:, i] * weights[:, j] for i, j in itertools.combinations(range(weights.shape[1]), 2)]
    return np.column_stack([weights, *pairs]) if pairs else weights


def quantile_of(rewards: NDArray[np.float64], quantiles: Sequence[float]) -> NDArray[np.float64]:
    """Shares in [0, 1] of a distribution, given as its rewards at equal steps of the quantile, that lie below each of
    ``rewards``; in the middle of the share where many answers have the very same reward."""
    levels = np.linspace(0.0, 1.0, len(quantiles))
    values = np.asarray(quantiles, dtype=np.float64)
    distinct, first, counts = np.unique(values, return_index=True, return_counts=True)
    middles = (levels[first] + levels[first + counts - 1]) / 2
    return np.asarray(np.interp(rewards, distinct, middles), dtype=np.float64)


def fingerprint_of(folders: Iterable[Path]) -> str:
    """Sixteen hexadecimal digits that change when the safetensors in ``folders`` do."""
    digest = hashlib.sha256()
    for folder in sorted(set(folders)):
        for file in sorted(folder.glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{folder.name}/{file.name}:{size}\n".encode())
            if size <= _WHOLE:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def member_folders(manifest: Manifest, root: Path) -> list[Path]:
    """Where the members lie that a preference weighs; a policy for one preference is none of them."""
    return [
        root / entry.path
        for kind, entry in manifest.members()
        if kind in ("backbone", "value") or getattr(entry, "objective", None) is not None
    ]


def load_calibration(root: Path, manifest: Manifest) -> Calibration | None:
    """The calibration beside ``family.toml``; None where there is none, or where it is of members that have changed
    since.

    Raises:
        FamilyError: unreadable, of other objectives, or of sizes that do not fit together.
    """
    file = root / CALIBRATION_NAME
    if not file.exists():
        return None
    try:
        found = Calibration.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FamilyError(file, f"cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise FamilyError(file, f"{where}: {first['msg']}") from None
    n = len(manifest.objectives)
    size = n * (n + 1) // 2
    if list(found.responses) != manifest.objectives:
        raise FamilyError(file, f"responses: {', '.join(found.responses)}; need {', '.join(manifest.objectives)}")
    for name, response in found.responses.items():
        square = [len(row) for row in response.covariance] == [size] * size
        if len(response.coefficients) != size or not square:
            raise FamilyError(file, f"responses.{name}: need {size} coefficients and their covariance")
        ascending = all(a <= b for a, b in itertools.pairwise(response.quantiles))
        if len(response.quantiles) < 2 or not ascending:
            raise FamilyError(file, f"responses.{name}.quantiles: need two or more, ascending")
    if not isinstance(found.steering.get("method"), str):
        raise FamilyError(file, "steering.method: missing")
    return found if found.fingerprint == fingerprint_of(member_folders(manifest, root)) else None


def dump_calibration(calibration: Calibration, file: Path) -> None:
    """Write it, whole or not at all. Raises OSError."""
    text = json.dumps(rounded(calibration.model_dump()), indent=1)
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)


def rounded(value: Any) -> Any:
    """Numbers with nine digits: more than a sweep can tell, and short enough for a file that people look at."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else value
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
