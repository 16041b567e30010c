"""How rewards follow merge coefficients, as ``ladle fit`` measured and fitted it, and the best coefficients by it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
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
from ladle.merging.preferences.surface_search import best_mix

SURFACE_NAME = "surface.json"
FITTED_METHOD = "fitted_soup"
"""The method whose coefficients come from the surface."""
_LEAST = 1e-3
"""The least that an expected reward lies above its floor: its logarithm is asked for."""


class Surface(BaseModel):
    """``surface.json`` of a family: quadratic response surfaces (Box and Wilson, 1951) over merge coefficients.

    Attributes:
        fingerprint: of the members, see ``fingerprint_of``.
        members: whose coefficients they are.
        sampling: how the answers were drawn.
        answers: how many there were.
        design: coefficients that were measured, [points, members].
        rewards: by objective, in the family's order, the weights of ``quadratic`` for the mean reward above its floor:
            in standard deviations of the base's own answers, and one of them below these answers' mean. Degenerate
            answers count as being on the floor.
        surprise: the same for how much more surprising the answers are to the base than its own, in nats a token.
        most_surprise: what the best coefficients may cost of it, in nats a token.
        order: how much it weighs that rewards keep the order of their weights, see ``best``; 0: nothing.
        explained: share of the variance that is explained of points left out, by objective and for ``surprise``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    members: list[str]
    sampling: dict[str, Any]
    answers: int
    design: list[list[Finite]]
    rewards: dict[str, list[Finite]]
    surprise: list[Finite]
    most_surprise: Finite
    order: Annotated[Finite, Field(ge=0)] = 0.0
    explained: dict[str, Finite]

    def heights(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards above their floors expected at coefficients: float64 [points, objectives] of [points, members]."""
        return np.asarray(quadratic(points) @ np.array(list(self.rewards.values())).T)

    def surprises(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """What answers are expected to be more surprising than the base's own, nats a token: float64 [points]."""
        return np.asarray(quadratic(points) @ np.array(self.surprise))

    def best(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Coefficients that maximise sum_i mu_i log(reward of i above its floor), by member.

        The weighted Nash product (J. Nash, The bargaining problem, 1950; as a rule for coefficients ours): which unit a
        reward has does not matter, and no reward is given up for another one's last bit. Searched among mixes of what
        was measured, where answers stay as unsurprising as ``most_surprise`` says.

        A member that helps a reward nobody asked for is welcome to that sum, and one asked for a little may get less
        than by asking for something else. So (ours too) ``order`` times sum_i a_i (log e_i - log r_i)+ + (1 - a_i)
        (log r_i - log e_i)+ is taken off, where e_i is what reward i has at the even preference and a_i = min(1, n
        mu_i): with an equal share of the weights or more, a reward is not to be below e_i, with none not above.

        Args:
            weights: mu, by objective.
        """
        return self._searched(tuple(weights))

    @cached_property
    def _searched(self) -> Callable[[tuple[float, ...]], tuple[float, ...]]:
        """``_search``, for every preference once: it takes 1 to 50 ms."""
        return lru_cache(maxsize=4096)(lambda weights: self._search(weights, self.order))

    @cached_property
    def _even(self) -> NDArray[np.float64]:
        """Logarithms of what the rewards are expected to be above their floors at the even preference: [objectives]."""
        n = len(self.rewards)
        return _log(self.heights(np.array([self._search((1 / n,) * n, 0.0)])))[0]

    def _search(self, weights: tuple[float, ...], order: float) -> tuple[float, ...]:
        mu, fitted = np.asarray(weights, dtype=np.float64), np.array([*self.rewards.values(), self.surprise]).T
        asked = np.minimum(1.0, len(mu) * mu)

        def evaluate(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            expected = quadratic(points) @ fitted
            heights = _log(expected[:, :-1])
            scores = heights @ mu
            if order:
                # What a reward has above, or below, the even preference, in log units: being above is taken off as far
                # as it was not asked for, being below as far as it was.
                above = heights - self._even
                scores -= order * (np.maximum(above, 0.0) @ (1.0 - asked) + np.maximum(-above, 0.0) @ asked)
            return scores, expected[:, -1]

        mix = best_mix(np.array(self.design), evaluate, self.most_surprise)
        return tuple((np.round(mix, 4) + 0.0).tolist())


def _log(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(heights, _LEAST))


def quadratic(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """1, c_i for all i, then c_i c_j for all i <= j: float64 [points, quadratic_size] of [points, n]."""
    pairs = itertools.combinations_with_replacement(range(points.shape[1]), 2)
    return np.column_stack([np.ones(len(points)), points, *[points[:, i] * points[:, j] for i, j in pairs]])


def quadratic_size(n: int) -> int:
    """How many functions ``quadratic`` has for ``n`` members."""
    return (n + 1) * (n + 2) // 2


def folders_of(manifest: Manifest, root: Path, members: Sequence[str]) -> list[Path]:
    """Where ``members`` lie."""
    return [member_folder(entry.path, root) for _, entry in manifest.members() if entry.name in members]


def load_surface(root: Path, manifest: Manifest) -> Surface | None:
    """The surface beside ``family.toml``; None where there is none, or where it is of members that have changed since.

    Raises:
        FamilyError: unreadable, of other objectives, or of sizes that do not fit together.
    """
    file = root / SURFACE_NAME
    surface = read_measured(file, Surface)
    if surface is None:
        return None
    n = len(surface.members)
    size = quadratic_size(n)
    if list(surface.rewards) != manifest.objectives:
        raise FamilyError(file, f"rewards: {', '.join(surface.rewards)}; need {', '.join(manifest.objectives)}")
    for name, fitted in (*surface.rewards.items(), ("surprise", surface.surprise)):
        if len(fitted) != size:
            raise FamilyError(file, f"{name}: {len(fitted)} numbers; need {size}, of {n} members")
    if not n or len(surface.design) < size or any(len(point) != n for point in surface.design):
        raise FamilyError(file, f"design: need {size} points or more, of {n} coefficients each")
    return surface if surface.fingerprint == fingerprint_of(folders_of(manifest, root, surface.members)) else None
