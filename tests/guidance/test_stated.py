"""Steering vectors in a request: named like members, beside a preference or alone, under every kind of method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guided_folder import write_guided_family
from routed_folder import write_routed_family
from tiny_models import write_tiny_base
from vector_folder import write_vectors

from ladle.guidance.plan import Plan, Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family

MIX = {"positive": 0.25, "simple": 0.75}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = write_guided_family(tmp_path_factory.mktemp("family"), "llama", 3)
    write_vectors(root, 4)
    return load_family(root)


@pytest.fixture
def plan(family: Family) -> Callable[..., Plan]:
    return lambda **steering: resolve(family, Steering.parse(steering))


def first(plan: Plan) -> dict[str, float]:
    return dict(plan.sources[0].coefficients)


def test_alone_they_are_added_to_the_base(plan: Callable[..., Plan]) -> None:
    made = plan(coefficients={"calm": 8.0, "loud": -0.5})
    assert first(made) == {"calm": 8.0, "loud": -0.5} and made.coefficients is not None
    # They are no part of the weights, and their scale is their own.
    assert made.coefficients.base_share == 1.0 and made.coefficients.l1 == 0.0 and made.warnings == ()
    assert made.coefficients.as_dict() == {"calm": 8.0, "loud": -0.5}
    assert plan(coefficients={"calm": 0.0}).sources == plan(coefficients={"bone-simple": 0.0}).sources


def test_beside_a_preference_they_leave_it_what_it_merges(plan: Callable[..., Plan]) -> None:
    for method in ("bone_soup", "rewarded_soup"):
        without = plan(method=method, preference=MIX)
        beside = plan(method=method, preference=MIX, coefficients={"calm": 2.0})
        assert first(beside) == {**first(without), "calm": 2.0} and beside.warnings == without.warnings
    # Weights that are stated take the preference's place, as they did.
    replaced = plan(method="bone_soup", preference=MIX, coefficients={"calm": 2.0, "bone-simple": 0.5})
    assert first(replaced) == {"calm": 2.0, "bone-simple": 0.5}
    assert any("no effect" in warning for warning in replaced.warnings)


def test_strength_scales_them_and_nothing_normalises_them(plan: Callable[..., Plan], family: Family) -> None:
    stated = {"bone-positive": 3.0, "bone-simple": 1.0, "calm": 2.0}
    assert first(plan(coefficients=stated, normalize="sum")) == {
        "bone-positive": 0.75, "bone-simple": 0.25, "calm": 2.0,
    }  # fmt: skip
    assert first(plan(coefficients=stated, normalize="sum", strength=0.5))["calm"] == 1.0
    normed = plan(coefficients=stated, normalize="norm")
    assert first(normed)["calm"] == 2.0
    without = plan(coefficients={"bone-positive": 3.0, "bone-simple": 1.0}, normalize="norm")
    assert {**first(without), "calm": 2.0} == first(normed)
    assert plan(coefficients=stated, strength=0.0).sources[0].coefficients == ()
    for normalize in ("sum", "norm"):
        with pytest.raises(InputError, match="only steering vectors were given"):
            plan(coefficients={"calm": 1.0}, normalize=normalize)


def test_the_base_of_guidance_has_them(plan: Callable[..., Plan]) -> None:
    without = plan(method="mage", preference=MIX, value="implicit", strength=0.7)
    beside = plan(method="mage", preference=MIX, value="implicit", strength=0.7, coefficients={"calm": 2.0})
    assert first(beside) == {**first(without), "calm": 2.0} and beside.warnings == without.warnings
    assert beside.sources[1:] == without.sources[1:]
    assert first(plan(method="cfg", coefficients={"calm": 2.0})) == {"calm": 2.0}


def test_a_term_may_be_a_vector(plan: Callable[..., Plan]) -> None:
    terms = [{"source": "calm", "weight": 1.5}, {"source": {"loud": -2, "bone-simple": 0.5}, "weight": -0.5}]
    made = plan(method="custom", terms=terms)
    assert [(source.name, dict(source.coefficients), source.weight) for source in made.sources] == [
        ("calm", {"calm": 1.0}, 1.5), ("merged", {"loud": -2.0, "bone-simple": 0.5}, -0.5),
    ]  # fmt: skip


def test_routed_experts_have_them(tmp_path: Path) -> None:
    root = write_routed_family(tmp_path, seed=1)
    write_vectors(root, 4)
    family = load_family(root)
    for preference in (None, MIX):
        without = resolve(family, Steering(method="fusion_route", preference=preference))
        beside = resolve(family, Steering(method="fusion_route", preference=preference, coefficients={"calm": 1.5}))
        for one, other in zip(without.sources, beside.sources, strict=True):
            assert {**dict(one.coefficients), "calm": 1.5} == dict(other.coefficients)


def test_a_family_of_a_base_and_vectors(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base", "llama", 1)
    (tmp_path / "family.toml").write_text('name = "bare"\n[base]\nmodel = "base"\n')
    write_vectors(tmp_path, 4)
    family = load_family(tmp_path)
    assert resolve(family, Steering()).method == "base"
    made = resolve(family, Steering(coefficients={"calm": -1.0}))
    assert made.method == "rewarded_soup" and first(made) == {"calm": -1.0}


@pytest.mark.parametrize(
    ("steering", "field"),
    [
        ({"coefficients": {"clam": 1.0}}, "steering.coefficients.clam"),
        ({"coefficients": {"calm": float("inf")}}, "steering.coefficients.calm"),
        ({"coefficients": {"calm": True}}, "steering.coefficients.calm"),
        ({"method": "base", "coefficients": {"calm": 1.0}}, "steering.coefficients"),
        ({"method": "custom", "terms": [{"source": "clam", "weight": 1}]}, "steering.terms[0].source"),
        ({"preference": MIX, "coefficients": {"calm": 1.0, "clam": 2.0}}, "steering.coefficients.clam"),
    ],
)
def test_what_is_refused(family: Family, steering: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(family, Steering.parse(steering))
    assert caught.value.field == field
