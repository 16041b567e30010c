"""A preference: non-negative weights over the objectives of a family, normalised to sum 1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ladle.merging.exceptions import CodedText, InputError

_SUM_TOLERANCE = 1e-6  # how far a sum may be from 1 before we say that it was normalised


NORMALISED = CodedText("preference_normalised", "the preference was normalised to sum 1")
"""The warning of a preference whose weights did not sum to 1."""
WITHOUT_EFFECT = CodedText("preference_without_effect", "coefficients were given, so the preference has no effect")


@dataclass(frozen=True)
class Preference:
    """Weights mu on the simplex.

    Attributes:
        weights: (objective, weight) in the family's order of objectives; the weights sum to 1.
        normalised: True when the weights that were given did not sum to 1.
    """

    weights: tuple[tuple[str, float], ...]
    normalised: bool

    @classmethod
    def of(cls, raw: Mapping[str, float], objectives: Sequence[str], field: str = "preference") -> "Preference":
        """Validate and normalise ``raw``; objectives it does not name get weight 0.

        Args:
            raw: weights by objective, in any scale.
            objectives: the objectives of the family, in its order.
            field: prefix of the field named by errors.

        Raises:
            InputError: an unknown objective, a weight that is no finite number >= 0, or no positive weight at all.
        """
        if not isinstance(raw, Mapping):
            raise InputError(field, raw, "an object of weights by objective")
        for name, weight in raw.items():
            if name not in objectives:
                raise InputError(f"{field}.{name}", weight, f"the objectives {', '.join(objectives)}")
            number = isinstance(weight, (int, float, np.number)) and not isinstance(weight, bool)
            if not number or not _is_finite(weight) or weight < 0:
                raise InputError(f"{field}.{name}", weight, "a finite number >= 0")
        largest = max((float(weight) for weight in raw.values()), default=0.0)
        if largest == 0.0:
            raise InputError(field, dict(raw), f"at least one positive weight over {', '.join(objectives)}")
        # Dividing by the largest first keeps sums of huge or denormal weights finite and non-zero. A sum within the
        # tolerance of 1 is divided too, so that "0.1 + 0.2 + 0.7" and its exact form mean the same weights.
        scaled = [float(raw.get(name, 0.0)) / largest for name in objectives]
        total = math.fsum(scaled)
        weights = tuple((name, share / total) for name, share in zip(objectives, scaled, strict=True))
        return cls(weights, normalised=abs(total * largest - 1.0) > _SUM_TOLERANCE)

    def vector(self) -> NDArray[np.float64]:
        """The weights as float64 ``[n]``, in the family's order of objectives."""
        return np.array([weight for _, weight in self.weights], dtype=np.float64)

    def as_dict(self) -> dict[str, float]:
        """The weights by objective."""
        return dict(self.weights)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int too large for a float
        return False
