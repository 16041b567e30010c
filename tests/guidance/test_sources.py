from dataclasses import replace

import numpy as np
import pytest

from ladle.guidance.plan import PromptView, Source
from ladle.guidance.sources import REFERENCE, arrange, summing_to_one
from ladle.merging.exceptions import InputError

BASE = Source("base", "base", 1.0, ())
MERGED = Source("merged", "merged", 1.0, (("a", 0.5), ("b", -0.5)))
VALUE = Source("value", "value", 1.0, (("v", 1.0),), head=(("v", 1.0),))


def arranged(*sources: Source, first_stays: bool = False, trace: bool = False) -> tuple[Source, ...]:
    return arrange(sources, first_stays=first_stays, trace=trace, field="steering.strength")


def test_equal_sources_are_one(seed: int) -> None:
    """1 + eta - eta is 1 to the last bit, whatever eta is, and the order of coefficients does not matter."""
    for eta in np.random.default_rng(seed).uniform(-50, 50, 200).tolist():
        turned = Source("guide", "guide", eta, (("b", -0.5), ("a", 0.5)))
        assert arranged(MERGED, turned, replace(turned, role="reference", weight=-eta)) == (MERGED,)


@pytest.mark.parametrize(
    "other",
    [
        replace(MERGED, coefficients=(("a", 0.5),)),
        replace(MERGED, model="small"),
        replace(MERGED, view=PromptView("system", "")),
        replace(MERGED, head=(("a", 1.0),)),
    ],
)
def test_what_differs_stays_apart(other: Source) -> None:
    assert len(arranged(MERGED, other)) == 2


def test_rounding_does_not_keep_a_source_alive() -> None:
    thirds = [replace(BASE, role="reference", weight=-1 / 3)] * 3
    tenths = [replace(BASE, role="reference", weight=-0.1)] * 10
    guide = Source("guide", "guide", 1.0, (("a", 1.0),))
    assert arranged(BASE, guide, *thirds) == arranged(BASE, guide, *tenths) == (guide,)


def test_weight_0_is_not_computed_unless_masks_need_it() -> None:
    silent = replace(BASE, weight=0.0)
    assert arranged(silent, MERGED) == (MERGED,)
    assert arranged(silent, MERGED, first_stays=True) == (silent, MERGED)
    assert arranged(MERGED, silent, first_stays=True) == (MERGED,)
    # A language model comes first, whatever was left out before it.
    assert arranged(silent, VALUE, MERGED) == (MERGED, VALUE)


def test_a_trace_brings_the_plain_base_once() -> None:
    assert arranged(MERGED, trace=True) == (MERGED, REFERENCE)
    assert arranged(BASE, trace=True) == (BASE,)
    reference = replace(BASE, role="reference", weight=-0.5)
    assert arranged(MERGED, reference, trace=True) == (MERGED, reference)
    seen_otherwise = replace(BASE, view=PromptView("prompt", ""))
    assert arranged(seen_otherwise, trace=True) == (seen_otherwise, REFERENCE)
    small = replace(BASE, model="small")
    assert arranged(small, trace=True) == (small, REFERENCE)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(InputError, match=r"steering\.strength.*cancel"):
        arranged(BASE, replace(BASE, weight=-1.0), VALUE)


def test_summing_to_one_leaves_values_alone(seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 3, 2).tolist()
    sources = [replace(BASE, weight=weights[0]), replace(MERGED, weight=weights[1]), VALUE]
    divided, total = summing_to_one(sources)
    assert total == pytest.approx(sum(weights)) and divided[2] == VALUE
    assert [source.weight for source in divided[:2]] == pytest.approx([weight / sum(weights) for weight in weights])
    with pytest.raises(InputError, match=r"steering\.normalize.*sum to"):
        summing_to_one([BASE, replace(MERGED, weight=-1.0)])
