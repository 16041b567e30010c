"""The part of a recipe that mixes rewards: the table [soup]."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ladle.merging.preferences.coefficients import check_matrix


@dataclass(frozen=True)
class SoupConfig:
    """Bone Soup's beta or its whole matrix B, a row of reward weights per backbone, and the factor k by objective of
    its extrapolation against the base (1 where not given)."""

    beta: float | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None
    extrapolation: dict[str, float] = dataclasses.field(default_factory=dict)


def check_soup(soup: SoupConfig, n: int, where: str) -> None:
    """Refuses a table by which backbones could not express every preference over ``n`` objectives.

    Args:
        soup: the table.
        n: number of objectives.
        where: the file or option, for the message.

    Raises:
        ValueError: it is not allowed.
    """
    if (soup.beta is None) == (soup.matrix is None):
        raise ValueError(f"{where}: give soup.beta or soup.matrix, one of them")
    if soup.beta is not None and not 1.0 / n < soup.beta < 1.0:
        raise ValueError(f"{where}: {soup.beta!r} is not allowed; allowed: 1/n < beta < 1")
    if soup.matrix is None:
        return
    try:
        matrix, _, _ = check_matrix(soup.matrix)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: soup.matrix: {error}") from None
    if matrix.shape != (n, n):
        shape = "x".join(map(str, matrix.shape))
        raise ValueError(
            f"{where}: soup.matrix: {shape} numbers are not allowed; allowed: {n}x{n}, a row per objective"
        )
