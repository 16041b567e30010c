"""What MAGE and its kin guide, and how values are combined where a request does not say."""

from dataclasses import replace
from typing import Any

import pytest

from ladle.guidance.plan import Plan, Source, Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family

MIX = {"positive": 1.0, "simple": 2.0}


def plan_of(family: Family, method: str, **steering: Any) -> Plan:
    return resolve(family, Steering.parse({"method": method, "preference": MIX, **steering}))


def refused(family: Family, field: str, **steering: Any) -> str:
    with pytest.raises(InputError) as caught:
        resolve(family, Steering.parse(steering))
    assert caught.value.field == field
    return "; ".join(part for part in (caught.value.reason, caught.value.allowed) if part)


@pytest.mark.parametrize("method", ["mage", "amplify"])
def test_what_is_guided_may_be_the_fitted_soup(guided: Family, method: str) -> None:
    fitted, plain = plan_of(guided, method, base="fitted_soup"), plan_of(guided, method)
    assert plan_of(guided, method, base="bone_soup") == plain and fitted.sources[0] != plain.sources[0]
    soup = plan_of(guided, "fitted_soup")
    assert fitted.coefficients == soup.coefficients and fitted.sources[0].coefficients == soup.sources[0].coefficients
    if method == "mage":
        assert fitted.sources[1:] == plain.sources[1:], "the guides are the preference's"
        assert plan_of(guided, method, base="fitted_soup", strength=0).sources == soup.sources
    unmeasured = replace(guided, surface=None)
    message = refused(unmeasured, "steering.base", method=method, preference={"positive": 1}, base="fitted_soup")
    assert "no response surface" in message and "bone_soup" in message
    refused(guided, "steering.base", method=method, preference={"positive": 1}, base="soup")
    stated = {"method": method, "preference": {"positive": 1}, "coefficients": {"bone-positive": 1.0}}
    assert "already" in refused(guided, "steering.base", **stated, base="bone_soup")
    refused(guided, "steering.base", method="genarm", preference={"positive": 1}, base="bone_soup")


def test_mage_merges_implicit_values_and_asks_explicit_ones_one_by_one(guided: Family) -> None:
    def sources(**options: Any) -> tuple[Source, ...]:
        return resolve(guided, Steering.parse({"method": "mage", "preference": MIX, **options})).sources

    for kind, default, other in (("implicit", "merged", "ensemble"), ("explicit", "ensemble", "merged")):
        assert sources(value=kind) == sources(value=kind, combine=default) != sources(value=kind, combine=other)
    both = sources(value="both")
    assert [s for s in both if s.head] == [s for s in sources(value="explicit") if s.head]
    assert [s for s in both if not s.head] == list(sources(value="implicit"))
