"""Coefficients that a request states itself: in place of those of its preference, or, of steering vectors, beside
them."""

from dataclasses import replace

from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients, explicit

FIELD = "steering.coefficients"


def stated_coefficients(family: Family, steering: Steering) -> Coefficients | None:
    """What the request says of members and vectors; None where it says nothing. Raises InputError."""
    if steering.coefficients is None:
        return None
    return explicit(steering.coefficients, family.weighable, FIELD, family.vectors)


def takes_over(family: Family, steering: Steering) -> bool:
    """Whether the request's coefficients take the place of those that its preference would become.

    Those of steering vectors alone do not: a vector changes no weights, so that the preference still says how these
    are merged, and the vector is added. Without a preference there is nothing that they would stand beside.
    """
    if steering.coefficients is None:
        return False
    alone = bool(steering.coefficients) and all(name in family.vectors for name in steering.coefficients)
    return steering.preference is None or not alone


def beside(merged: Coefficients, stated: Coefficients | None) -> Coefficients:
    """``merged`` with the vectors of ``stated`` added."""
    return merged if stated is None or not stated.vectors else replace(merged, vectors=stated.vectors)
