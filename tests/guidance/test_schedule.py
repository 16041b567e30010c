"""Steering in parts, and what a change keeps of the steering before."""

from pathlib import Path
from typing import Any

import pytest
from guided_folder import write_guided_family

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.guidance.schedule import changed
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family

TO_POSITIVE, TO_SIMPLE = {"positive": 1.0, "simple": 0.0}, {"positive": 0.0, "simple": 1.0}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return load_family(write_guided_family(tmp_path_factory.mktemp("family"), "llama", 3, pblora=False))


def test_parts_are_plans_of_their_own(family: Family) -> None:
    outside = {"method": "rewarded_soup", "trace": True}
    mage = {"method": "mage", "value": "implicit", "preference": TO_SIMPLE}
    parts = [{"until": 3, "preference": TO_POSITIVE}, {"until": 9, "preference": TO_SIMPLE}, mage]
    plan = resolve(family, Steering.parse({**outside, "schedule": parts}))
    assert [part.start for part in plan.schedule] == [3, 9]
    alone = [{**outside, "preference": TO_POSITIVE}, {**outside, "preference": TO_SIMPLE}, {**mage, "trace": True}]
    found = [plan.plans[0].sources, *(part.sources for part in plan.plans[1:])]
    assert found == [resolve(family, Steering.parse(steering)).sources for steering in alone]
    assert plan.trace and all(part.plan.trace and not part.plan.schedule for part in plan.schedule)


def test_views_are_those_of_all_parts(family: Family) -> None:
    parts = [{"until": 2, "method": "base"}, {"method": "cfg", "negative_prompt": "Be dull."}]
    plan = resolve(family, Steering.parse({"schedule": parts}))
    assert plan.views == plan.schedule[0].plan.views and len(plan.views) == 1


def test_a_change_keeps_what_it_does_not_name() -> None:
    before = Steering.parse({"method": "mage", "preference": TO_POSITIVE, "strength": 2, "trace": True})
    assert changed(before, {"preference": TO_SIMPLE}) == Steering.parse(
        {"method": "mage", "preference": TO_SIMPLE, "strength": 2, "trace": True}
    )
    assert changed(before, {"strength": 1, "preference": None}) == Steering.parse(
        {"method": "mage", "preference": TO_POSITIVE, "strength": 1, "trace": True}
    )
    # Of another aim nothing may be left that would go before it, and another method has other options.
    stated = Steering.parse({"method": "mage", "coefficients": {"m": 1.0}, "strength": 2})
    assert changed(stated, {"preference": TO_SIMPLE}).coefficients is None
    assert changed(before, {"target": {"positive": 0.5}}).preference is None
    assert changed(before, {"method": "mod"}) == Steering.parse(
        {"method": "mod", "preference": TO_POSITIVE, "trace": True}
    )


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        ([], ""),
        ("soon", ""),
        ([{}] * 300, ""),
        ([3], ".0"),
        ([{}, {}], ".0.until"),
        ([{"until": 0}, {}], ".0.until"),
        ([{"until": True}, {}], ".0.until"),
        ([{"until": "sentence:3"}, {}], ".0.until"),
        ([{"until": 5}, {"until": 5}, {}], ".1.until"),
        ([{"until": 5}, {"until": 9}], ".1.until"),
        ([{"until": 5}, {"preference": {"rude": 1}}], ".1.preference.rude"),
        ([{"until": 5}, {"preference": [1]}], ".1.preference"),
        ([{"until": 5}, {"mood": 1}], ".1.mood"),
        ([{"until": 5}, {"trace": True}], ".1.trace"),
        ([{"until": 5}, {"schedule": [{}]}], ".1.schedule"),
        ([{"until": 5}, {"method": "cd", "block_length": 4}], ".1.block_length"),
        ([{"until": 5, "method": "cd", "block_length": 4}, {}], ".0.block_length"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(family: Family, schedule: Any, field: str) -> None:
    steering = {"method": "rewarded_soup", "preference": TO_POSITIVE, "schedule": schedule}
    with pytest.raises(InputError) as refused:
        resolve(family, Steering.parse(steering))
    assert refused.value.field == f"steering.schedule{field}"


def test_an_answer_is_judged_under_one_preference(family: Family) -> None:
    asked = Steering(schedule=[{"until": 4}, {}], rank={"by": "likelihood"})
    with pytest.raises(InputError, match=r"steering\.rank.*judged under one preference"):
        resolve(family, asked)
    with pytest.raises(InputError, match=r"steering\.rank.*holds for the whole answer"):
        changed(Steering(), {"rank": {"by": "likelihood"}})


def test_a_checkpoint_has_no_parts(family: Family, tmp_path: Path) -> None:
    from ladle.guidance.offline import merge_offline

    steering = {
        "method": "rewarded_soup",
        "schedule": [{"until": 5, "preference": TO_POSITIVE}, {"preference": TO_SIMPLE}],
    }
    with pytest.raises(InputError, match="one set of weights"):
        merge_offline(family, Steering.parse(steering), tmp_path / "out")
