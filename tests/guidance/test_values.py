import re
from typing import Any

import numpy as np
import pytest
from guided_families import singles, value, with_values
from tiny_models import OBJECTIVES

from ladle.guidance.values import guides, log_ratio, usable
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.preference import Preference

POSITIVE, SIMPLE, CONCISE = OBJECTIVES
ROWS = ((0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8))


def mixed(rows: Any, kind: str = "implicit") -> tuple[Any, ...]:
    return tuple(value(f"mix-{index}", kind, rewards=row) for index, row in enumerate(rows))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((), "the family has no implicit values"),
        (singles("x", "explicit"), "the family has no implicit values"),
        ((value("arm", conditioned=((POSITIVE, "arm@positive"),)),), "the family has no implicit values"),
        (singles("x")[:2], "no implicit value for objective 'concise'"),
        (mixed(ROWS[:2]), "2 implicit values with rewards for 3 objectives"),
        (mixed((ROWS[0], ROWS[1], ROWS[0])), "the rewards of the implicit values: .*singular"),
    ],
)
def test_what_is_missing_is_named(family: Family, values: tuple[Any, ...], reason: str) -> None:
    state = usable(with_values(family, *values), "implicit")
    assert not state.available
    assert re.match(reason, state.reason), state.reason


def test_references_are_asked_for(family: Family) -> None:
    with_ref, without = singles("dpo"), singles("arm", reference=False)
    both = with_values(family, *without[:2], *with_ref)
    assert usable(both, "implicit", reference=True).available
    assert usable(both, "implicit", reference=False).reason == (
        "no implicit value without a reference for objective 'concise'"
    )
    assert usable(with_values(family, *without), "implicit", reference=True).reason == (
        "the family has no implicit values with a reference"
    )


def test_references_are_rather_not_mixed(family: Family) -> None:
    dpo, arms = singles("dpo"), singles("arm", reference=False)
    mu = Preference.of(dict.fromkeys(OBJECTIVES, 1), OBJECTIVES)

    def chosen(*values: Any) -> list[str]:
        return [part.name for part in guides(with_values(family, *values), "implicit", mu, "ensemble", "merged")[0]]

    assert chosen(*arms, *dpo) == [value.name for value in dpo]
    assert chosen(*dpo[:2], *arms) == [value.name for value in arms]
    assert chosen(*dpo[:2], *arms[1:]) == ["dpo-positive", "dpo-simple", "arm-concise"]


def test_one_value_an_objective_goes_before_rows(family: Family) -> None:
    full = with_values(family, *mixed(ROWS), *singles("x"))
    parts, warnings = guides(full, "implicit", Preference.of({SIMPLE: 1}, OBJECTIVES), None, "ensemble")
    assert [part.name for part in parts] == ["x-simple"] and not warnings


def test_solved_weights_may_be_negative_and_warn(family: Family) -> None:
    rows = ((0.4, 0.3, 0.3), (0.3, 0.4, 0.3), (0.3, 0.3, 0.4))
    preference = Preference.of({POSITIVE: 1}, OBJECTIVES)
    parts, warnings = guides(with_values(family, *mixed(rows)), "implicit", preference, None, "merged")
    expected = np.linalg.solve(np.array(rows).T, [1, 0, 0])
    np.testing.assert_allclose([share for _, share in parts[0].coefficients], expected)
    assert min(expected) < 0 and any(
        text.startswith("implicit values: the coefficients are large") for text in warnings
    )
    ensemble, _ = guides(with_values(family, *mixed(rows)), "implicit", preference, "ensemble", "merged")
    np.testing.assert_allclose([part.weight for part in ensemble], expected)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "small"}, "different models"),
        ({"system": "Be nice."}, "different system messages"),
        ({"reference": False}, "do not all have a reference"),
    ],
)
def test_what_cannot_be_merged_is_ensembled_or_refused(family: Family, fields: dict[str, Any], why: str) -> None:
    first, _, third = singles("x")
    odd = with_values(family, first, value("x-simple", objective=SIMPLE, **fields), third)
    mu = Preference.of(dict.fromkeys(OBJECTIVES, 1), OBJECTIVES)
    parts, warnings = guides(odd, "implicit", mu, None, "merged")
    assert len(parts) == 3 and len(warnings) == 1 and why in warnings[0]
    with pytest.raises(InputError, match=why) as caught:
        guides(odd, "implicit", mu, "merged", "merged")
    assert caught.value.field == "steering.combine"
    # An ensemble by choice needs no excuse, and values that take no part do not stand in the way.
    assert guides(odd, "implicit", mu, "ensemble", "merged")[1] == ()
    few = Preference.of({POSITIVE: 1, CONCISE: 1}, OBJECTIVES)
    assert len(guides(odd, "implicit", few, "merged", "ensemble")[0]) == 1


def test_heads_follow_the_values_and_weights_the_members(family: Family) -> None:
    """Values in one folder share weights; their heads may differ."""
    shared = with_values(family, *singles("rank", "explicit", member="trunk"))
    mu = Preference.of({POSITIVE: 0.5, SIMPLE: 0.25, CONCISE: 0.25}, OBJECTIVES)
    (part,), _ = guides(shared, "explicit", mu, "merged", "merged")
    assert part.coefficients == (("trunk", 1.0),)
    assert part.head == (("rank-positive", 0.5), ("rank-simple", 0.25), ("rank-concise", 0.25))
    assert part.source().role == "value" and part.source().weight == 1.0


def test_references_see_what_the_tuned_model_sees(family: Family) -> None:
    told = with_values(family, *singles("x", system="Be nice.", model="small"))
    mu = Preference.of({POSITIVE: 1}, OBJECTIVES)
    tuned, plain = log_ratio(guides(told, "implicit", mu, None, "merged")[0], 2.0)
    assert (tuned.weight, plain.weight) == (2.0, -2.0)
    assert (
        plain.coefficients == () and (plain.model, plain.view) == (tuned.model, tuned.view) and plain.view is not None
    )
