"""From a preference to merge coefficients: W(mu) = W0 + sum_j c_j (W_j - W0). Pure float64 arithmetic.

B is the backbone-reward matrix: row j holds the weights of the objectives' rewards in the reward of backbone j.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ladle.merging.exceptions import CodedText, InputError, code_of
from ladle.merging.preferences.delta_norms import DeltaNorms
from ladle.merging.preferences.preference import Preference

MAX_CONDITION = 1e8  # beyond this half of float64's digits are gone and the solution is noise: refuse
WARN_CONDITION = 100.0
WARN_L1 = 3.0  # beta = 0.7 and n = 2 reaches 2.5 at its corners; larger norms amplify the noise of the members
_ROW_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Coefficients:
    """Signed member weights, never clipped, and renormalised only where a request says so.

    Attributes:
        members: names of the members.
        values: their coefficients, float64.
        base_share: 1 - sum(values), the weight left on the base itself.
        condition: 2-norm condition number of B where B was solved, else None.
        l1: sum of |values|.
        warnings: what a reader of a response should know.
        vectors: (steering vector, its number). Vectors are added to hidden states and are no part of the weights: they
            count neither in ``base_share`` nor in ``l1``, and nothing normalises them.
    """

    members: tuple[str, ...]
    values: tuple[float, ...]
    base_share: float
    condition: float | None
    l1: float
    warnings: tuple[str, ...]
    vectors: tuple[tuple[str, float], ...] = ()

    def as_dict(self) -> dict[str, float]:
        """The coefficients by member, those of vectors included."""
        return {**dict(zip(self.members, self.values, strict=True)), **dict(self.vectors)}

    def scaled(self, factor: float) -> "Coefficients":
        """Every coefficient times ``factor``: 0 is the base exactly, 1 changes nothing."""
        if factor == 1.0:
            return self
        # "+ 0.0" turns -0.0 into 0.0, which would otherwise be printed as "-0.0" in responses.
        values = tuple(value * factor + 0.0 for value in self.values)
        kept = tuple(warning for warning in self.warnings if code_of(warning) != LARGE)
        vectors = tuple((name, value * factor + 0.0) for name, value in self.vectors)
        scaled = _coefficients(self.members, values, self.condition)
        return replace(scaled, warnings=kept + _l1_warnings(values), vectors=vectors)

    def summing_to_one(self, field: str) -> "Coefficients":
        """Coefficients divided by their sum, as mergekit's ``linear`` does; the base's share becomes 0.

        Raises:
            InputError: naming ``field``, when the sum is 0 within rounding, or there are only vectors.
        """
        self._require_weights(field, "sum")
        total = math.fsum(self.values)
        if abs(total) < 1e-9 * max(1.0, self.l1):
            raise InputError(field, "sum", "none", f"the coefficients of {', '.join(self.members)} sum to {total:.3g}")
        scaled = self.scaled(1.0 / total)
        return replace(scaled, base_share=0.0, vectors=self.vectors)

    def keeping_norm(self, norms: DeltaNorms, field: str) -> "Coefficients":
        """Coefficients scaled so that the merged delta is as long (Frobenius) as its members' are on average, each
        weighted by the size of its coefficient: one member alone stays what it is (ours).

        Deltas that point in different directions shorten each other when they are averaged, and signed coefficients
        lengthen them: n orthogonal deltas of one length have 1 / sqrt(n) of it at the even preference.

        Raises:
            InputError: naming ``field``: a member without low-rank factors, deltas that cancel each other out, or
                nothing but vectors.
        """
        self._require_weights(field, "norm")
        given = {name: value for name, value in zip(self.members, self.values, strict=True) if value != 0.0}
        for name in given:
            if name not in norms:
                raise InputError(field, "norm", "none, sum", f"norms are of low-rank members, and {name} is a full one")
        # Deltas that cancel leave nothing to be scaled up: what is left would be rounding.
        norm, wanted = norms.merged(given), norms.mean(given)
        if norm <= 1e-9 * max(1.0, self.l1) * wanted:
            raise InputError(field, "norm", "none", f"the deltas of {', '.join(self.members)} cancel each other out")
        return replace(self.scaled(wanted / norm), vectors=self.vectors)

    def _require_weights(self, field: str, value: str) -> None:
        if self.vectors and not self.members:
            reason = "only steering vectors were given, and it normalises the coefficients of weights"
            raise InputError(field, value, "none", reason)


def circulant(beta: float, n: int) -> NDArray[np.float64]:
    """The symmetric circulant backbone-reward matrix of Bone Soup (arXiv 2502.10762): float64 ``[n, n]``.

    ``beta`` on the diagonal, ``(1 - beta) / (n - 1)`` elsewhere. The paper gives n = 2 in full; for n >= 3 equal
    off-diagonals are our reading (forced for n = 3 by symmetry, circulance and unit row sums).

    Raises:
        ValueError: n < 2, or beta outside (1/n, 1]; at 1/n all rows are equal and B is singular.
    """
    if n < 2:
        raise ValueError(f"a backbone-reward matrix needs at least 2 objectives, not {n}")
    if not (1.0 / n < beta <= 1.0):
        raise ValueError(f"beta {beta!r} is not in (1/{n}, 1]")
    matrix = np.full((n, n), (1.0 - beta) / (n - 1), dtype=np.float64)
    np.fill_diagonal(matrix, beta)
    return matrix


def check_matrix(matrix: ArrayLike) -> tuple[NDArray[np.float64], float, tuple[str, ...]]:
    """Validate a backbone-reward matrix.

    Returns:
        The matrix as float64 ``[n, n]``, its 2-norm condition number, and warnings.

    Raises:
        ValueError: not square with n >= 2, not finite, or singular (condition number above ``MAX_CONDITION``).
    """
    array = np.array(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] < 2:
        raise ValueError(f"the backbone-reward matrix must be n x n with n >= 2, not {'x'.join(map(str, array.shape))}")
    if not np.isfinite(array).all():
        raise ValueError("the backbone-reward matrix holds a number that is not finite")
    condition = float(np.linalg.cond(array))
    if not condition <= MAX_CONDITION:
        raise ValueError(
            f"the backbone-reward matrix is singular (condition number {condition:.3g}, at most {MAX_CONDITION:.0e}): "
            "no mix of these backbones can express every preference"
        )
    warnings = []
    for row, total in enumerate(array.sum(axis=1)):
        if abs(total - 1.0) > _ROW_SUM_TOLERANCE:
            text = f"row {row} of the backbone-reward matrix sums to {total:.6g}, not 1"
            warnings.append(CodedText("matrix_row_sum", text))
    if condition > WARN_CONDITION:
        text = f"the backbone-reward matrix is ill-conditioned (condition number {condition:.3g})"
        warnings.append(CodedText("matrix_ill_conditioned", text))
    return array, condition, tuple(warnings)


def rewarded_soup(preference: Preference, members: Mapping[str, str]) -> Coefficients:
    """Rewarded Soups (arXiv 2306.04488): theta = sum_i mu_i theta_i.

    Args:
        preference: mu.
        members: the single-objective policy of every objective, by objective.

    Raises:
        InputError: the preference puts weight on an objective without a policy.
    """
    for objective, weight in preference.weights:
        if weight > 0 and objective not in members:
            reason = f"only {', '.join(members)} may have weight here"
            raise InputError(f"preference.{objective}", weight, reason=reason)
    pairs = [(members[objective], weight) for objective, weight in preference.weights if objective in members]
    return _coefficients(tuple(name for name, _ in pairs), tuple(weight for _, weight in pairs), None)


def bone_soup(
    preference: Preference,
    matrix: ArrayLike,
    members: Sequence[str],
    extrapolation: Mapping[str, float] | None = None,
) -> Coefficients:
    """Bone Soup (arXiv 2502.10762): solve B^T x = k * mu for the coefficients of the backbones.

    Rewards combine linearly, so the soup's reward sum_j x_j h_j equals mu . r when B^T x = mu; for the paper's
    symmetric B that is its lam = B^-1 mu. Extrapolation against the base scales every objective i by k_i:
    x_j = sum_i mu_i k_i (B^-T)_ji. At n = 2 that is what the authors' script does (merged weights k lam on the
    backbones and 1 - k on the SFT model); for more objectives the same sum is our reconstruction. Where the rows of B
    sum to 1 the base's share is sum_i mu_i (1 - k_i).

    Args:
        preference: mu over n objectives.
        matrix: B ``[n, n]``.
        members: the backbones in the order of B's rows.
        extrapolation: k_i by objective; 1 where not given.

    Raises:
        ValueError: B is malformed or singular (see ``check_matrix``), or sizes do not agree.
    """
    array, condition, warnings = check_matrix(matrix)
    if len(members) != array.shape[0] or len(preference.weights) != array.shape[0]:
        raise ValueError(
            f"the backbone-reward matrix is {array.shape[0]}x{array.shape[0]}, but there are {len(members)} backbones "
            f"and {len(preference.weights)} objectives"
        )
    scale = extrapolation or {}
    target = np.array([weight * scale.get(name, 1.0) for name, weight in preference.weights], dtype=np.float64)
    # B^T x = k mu: row j of B is the reward that backbone j was trained on, so that entry i of B^T x is the weight of
    # objective i's reward in the soup's.
    solved = np.linalg.solve(array.T, target)
    result = _coefficients(tuple(members), tuple(float(value) + 0.0 for value in solved), condition)
    return replace(result, warnings=warnings + result.warnings)


def explicit(
    mapping: Mapping[str, float],
    members: Sequence[str],
    field: str = "coefficients",
    vectors: Collection[str] = (),
) -> Coefficients:
    """Coefficients that a request states itself; members it does not name are left out.

    Args:
        members: all names that there are.
        vectors: those of ``members`` that are steering vectors.

    Raises:
        InputError: an unknown member, a coefficient that is no finite number, or an empty mapping.
    """
    if not isinstance(mapping, Mapping) or not mapping:
        raise InputError(field, mapping, f"an object of numbers by member, over {', '.join(members)}")
    for name, value in mapping.items():
        if name not in members:
            raise InputError(f"{field}.{name}", value, f"the members {', '.join(members)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
            raise InputError(f"{field}.{name}", value, "a finite number between -1e6 and 1e6")
    ordered = [name for name in members if name in mapping]
    weights = [name for name in ordered if name not in vectors]
    stated = _coefficients(tuple(weights), tuple(float(mapping[name]) for name in weights), None)
    return replace(stated, vectors=tuple((name, float(mapping[name])) for name in ordered if name in vectors))


LARGE = "coefficients_large"
"""Code of the warning that the coefficients are large."""


def _l1_warnings(values: Sequence[float]) -> tuple[str, ...]:
    l1 = math.fsum(map(abs, values))
    if l1 <= WARN_L1:
        return ()
    text = f"the coefficients are large (sum of absolute values {l1:.3g}, above {WARN_L1:g}): expect noisier text"
    return (CodedText(LARGE, text),)


def _coefficients(members: tuple[str, ...], values: tuple[float, ...], condition: float | None) -> Coefficients:
    share = math.fsum((1.0, *(-value for value in values)))
    # Rounding alone leaves shares such as 1e-16 where the algebra says 0; that is noise, not a share.
    share = 0.0 if abs(share) < 1e-12 else share
    return Coefficients(members, values, share, condition, math.fsum(map(abs, values)), _l1_warnings(values))
