"""What every plan of several sources has in common: equal sources become one, nothing is computed in vain."""

import math
from collections.abc import Sequence
from dataclasses import replace

from ladle.guidance.plan import Source
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.coefficients import Coefficients

REFERENCE = Source(name="base", role="reference", weight=0.0, coefficients=())


def merged_source(merged: Coefficients) -> Source:
    """The language model that a method merged as its base."""
    terms = tuple((name, value) for name, value in merged.as_dict().items() if value != 0.0)
    return Source(name="merged", role="merged", weight=1.0, coefficients=terms)


def arrange(sources: Sequence[Source], *, first_stays: bool, trace: bool, field: str) -> tuple[Source, ...]:
    """The sources of a plan: equal ones are one of the sum of their weights, those of weight 0 are left out, and a
    traced plan has the plain base among them, if only to be compared with.

    Args:
        sources: language models and values; the first is a language model.
        first_stays: a mask or candidates are taken from the first source, so that it stays even at weight 0.
        trace: the plan is traced.
        field: the field to name when nothing is left.

    Raises:
        InputError: all language models cancel out.
    """
    merged: dict[tuple[object, ...], list[Source]] = {}
    for source in sources:
        # Sources are one if they compute the same: weights, model, view of the prompt and head.
        key = (tuple(sorted(source.coefficients)), source.model, source.view, source.head)
        merged.setdefault(key, []).append(source)
    summed = [replace(same[0], weight=_sum([source.weight for source in same])) for same in merged.values()]
    if not any(source.weight for source in summed if not source.head):
        raise InputError(field, 0.0, reason="the weights of the sources cancel out, so nothing would be generated")
    kept = [source for index, source in enumerate(summed) if source.weight or (first_stays and index == 0)]
    # A language model stays first.
    kept.sort(key=lambda source: bool(source.head))
    if trace and not any(source.plain for source in kept):
        kept.append(REFERENCE)
    return tuple(kept)


def _sum(weights: Sequence[float]) -> float:
    """Their sum, rounded once: (1 + eta) - eta is 1 exactly, so that a guide that is the reference leaves the base bit
    for bit. Weights that cancel but for the rounding of a preference are 0, and their source need not be computed."""
    total = math.fsum(weights)
    return 0.0 if len(weights) > 1 and abs(total) < 1e-12 * max(map(abs, weights)) else total


def summing_to_one(sources: Sequence[Source]) -> tuple[list[Source], float]:
    """The sources with the language models' weights divided by their sum, and that sum.

    Raises:
        InputError: ``steering.normalize``: the sum is 0 within rounding.
    """
    weights = [source.weight for source in sources if not source.head]
    total = math.fsum(weights)
    if abs(total) < 1e-9 * max(1.0, math.fsum(map(abs, weights))):
        raise InputError("steering.normalize", "sum", "none", f"the weights of the sources sum to {total:.3g}")
    divided = [source if source.head else replace(source, weight=source.weight / total) for source in sources]
    return divided, total


def grown_source(family: Family, name: str, role: str, weight: float, below: dict[str, float], member: str) -> Source:
    """A language model by its own delta, on the base that the coefficients ``below`` make where it was grown from the
    base."""
    model = family.model_of(member)
    below = {} if model else below
    # The expert's own delta comes on top of the merged base, W0 + sum_j c_j D_j + D_own, also where it is one of the
    # merged.
    terms = {**below, member: below.get(member, 0.0) + 1.0}
    return Source(name, role, weight, tuple((member, value) for member, value in terms.items() if value != 0.0), model)
