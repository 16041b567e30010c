from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_family

from ladle.guidance.plan import Source, Steering
from ladle.guidance.registry import (
    METHODS,
    available,
    check_methods,
    default_method,
    preset_steering,
    resolve,
    takes_preference,
    usable_by_name,
)
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family, load_family

MIX = {"positive": 0.5, "simple": 0.25, "concise": 0.25}


def edited(root: Path, tmp_path: Path, old: str, new: str) -> Family:
    """The family with another family.toml beside the same members."""
    text = (root / "family.toml").read_text().replace('"adapters/', f'"{root}/adapters/')
    assert old in text
    text = text.replace('model = "base"', f'model = "{root}/base"').replace(old, new, 1)
    (tmp_path / "family.toml").write_text(text)
    return load_family(tmp_path)


def test_bone_soup_is_the_default_and_solves(family: Family, seed: int) -> None:
    mu = np.random.default_rng(seed).dirichlet(np.ones(3))
    plan = resolve(family, Steering(preference=dict(zip(family.objectives, mu.tolist(), strict=True))))
    assert plan.method == "bone_soup" and plan.coefficients is not None and family.matrix is not None
    np.testing.assert_allclose(plan.coefficients.values, np.linalg.solve(family.matrix.T, mu), atol=1e-12)
    assert [source.role for source in plan.sources] == ["merged"] and plan.sources[0].weight == 1.0
    assert dict(plan.sources[0].coefficients) == plan.coefficients.as_dict()


def test_rewarded_soup_uses_the_policies(family: Family) -> None:
    plan = resolve(family, Steering(method="rewarded_soup", preference=MIX))
    assert plan.sources == (
        Source("merged", "merged", 1.0, (("only-positive", 0.5), ("only-simple", 0.25), ("only-concise", 0.25))),
    )


def test_base_is_one_plain_source(family: Family) -> None:
    plan = resolve(family, Steering(method="base", trace=True))
    assert plan.sources == (Source("base", "base", 1.0, ()),) and plan.coefficients is None
    compared = resolve(family, Steering(method="base", preference=MIX))
    assert compared.preference is not None and any("ignores" in warning for warning in compared.warnings)


def test_a_trace_brings_the_reference(family: Family) -> None:
    plan = resolve(family, Steering(preference=MIX, trace=True))
    assert plan.sources[1] == Source("base", "reference", 0.0, ())
    # Strength 0 is the base itself: there is nothing to compare it with.
    still = resolve(family, Steering(preference=MIX, strength=0.0, trace=True))
    assert still.sources == (Source("merged", "merged", 1.0, ()),)


def test_strength_scales_and_normalize_divides(family: Family) -> None:
    whole = resolve(family, Steering(preference=MIX)).coefficients
    half = resolve(family, Steering(preference=MIX, strength=0.5)).coefficients
    assert whole is not None and half is not None
    np.testing.assert_allclose(half.values, np.array(whole.values) / 2)
    assert half.base_share == pytest.approx(0.5)
    stated = {"bone-positive": 3.0, "only-simple": 1.0}
    plan = resolve(family, Steering(coefficients=stated, normalize="sum", strength=2.0))
    assert dict(plan.sources[0].coefficients) == {"bone-positive": 1.5, "only-simple": 0.5}
    assert plan.normalize == "sum"


def test_normalize_keeps_the_norm_of_the_members(family: Family) -> None:
    """At strength s the merged delta is s times as long as its members' on average; a method that guides has none."""
    for method, preference in (("bone_soup", MIX), ("rewarded_soup", {"positive": 0.75, "concise": 0.25})):
        plan = resolve(family, Steering(method=method, preference=preference, normalize="norm", strength=1.5))
        assert plan.coefficients is not None and plan.normalize == "norm"
        given = {name: value for name, value in plan.coefficients.as_dict().items() if value}
        assert family.delta_norms.merged(given) == pytest.approx(1.5 * family.delta_norms.mean(given))
    alone = resolve(family, Steering(method="rewarded_soup", preference={"concise": 1.0}, normalize="norm"))
    assert dict(alone.sources[0].coefficients) == {"only-concise": pytest.approx(1.0)}


def test_stated_coefficients_override_the_preference(family: Family) -> None:
    plan = resolve(family, Steering(preference=MIX, coefficients={"bone-concise": -0.5}))
    assert dict(plan.sources[0].coefficients) == {"bone-concise": -0.5}
    assert any("no effect" in warning for warning in plan.warnings)


def test_normalisation_of_the_preference_is_said(family: Family) -> None:
    plan = resolve(family, Steering(preference={"positive": 5}))
    assert plan.preference is not None and plan.preference.as_dict()["positive"] == 1.0
    assert any("normalised" in warning for warning in plan.warnings)


def test_extrapolation_of_the_manifest_is_used(root: Path, tmp_path: Path) -> None:
    family = edited(root, tmp_path, "beta = 0.7", "beta = 0.7\nextrapolation = { positive = 1.25 }")
    plan = resolve(family, Steering(preference={"positive": 1.0}))
    assert plan.coefficients is not None and plan.coefficients.base_share == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("steering", "field"),
    [
        ({"method": "sorcery"}, "steering.method"),
        ({}, "steering.preference"),
        ({"method": "rewarded_soup"}, "steering.preference"),
        ({"preference": {"wit": 1}}, "steering.preference.wit"),
        ({"preference": {"positive": -1}}, "steering.preference.positive"),
        ({"preference": {"positive": 0}}, "steering.preference"),
        ({"method": "base", "preference": {"wit": 1}}, "steering.preference.wit"),
        ({"method": "base", "strength": 0.5}, "steering.strength"),
        ({"method": "base", "coefficients": {"bone-positive": 1}}, "steering.coefficients"),
        ({"preference": MIX, "value": "implicit"}, "steering.value"),
        ({"preference": MIX, "combine": "merged"}, "steering.combine"),
        ({"preference": MIX, "candidates": 10}, "steering.candidates"),
        ({"preference": MIX, "terms": [{}]}, "steering.terms"),
        ({"coefficients": {"nobody": 1.0}}, "steering.coefficients.nobody"),
        ({"coefficients": {"bone-positive": float("nan")}}, "steering.coefficients.bone-positive"),
        ({"coefficients": {}}, "steering.coefficients"),
        ({"coefficients": {"bone-positive": 1, "bone-simple": -1}, "normalize": "sum"}, "steering.normalize"),
        ({"coefficients": {"bone-positive": 0}, "normalize": "norm"}, "steering.normalize"),
        ({"coefficients": {"only-simple": 1}, "normalize": "norm"}, "steering.normalize"),
        ({"method": "custom", "terms": [{"source": "base", "weight": 1}], "normalize": "norm"}, "steering.normalize"),
    ],
)
def test_what_cannot_be_done_is_named(family: Family, steering: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(family, Steering.parse(steering))
    assert caught.value.field == field


def test_unavailable_methods_say_why(tmp_path: Path) -> None:
    family = load_family(write_family(tmp_path, n=2, policies=False))
    status = available(family)
    assert status["bone_soup"] == (True, "") and status["base"] == (True, "")
    assert status["rewarded_soup"][0] is False and "'positive'" in status["rewarded_soup"][1]
    with pytest.raises(InputError, match="no policy for objective .*bone_soup, base, amplify, cfg, custom"):
        resolve(family, Steering(method="rewarded_soup", preference={"positive": 1}))
    # Members without a matrix: only stated coefficients can mix them.
    bare = replace(family, matrix=None)
    assert "matrix" in available(bare)["bone_soup"][1] and default_method(bare) == "base"
    plan = resolve(bare, Steering(method="bone_soup", coefficients={"bone-positive": 1.0}))
    assert plan.sources[0].coefficients == (("bone-positive", 1.0),)
    empty = replace(bare, kinds={}, backbones=(), objectives=())
    assert {name for name, (ready, _) in available(empty).items() if ready} == {"base", "cfg", "custom"}
    assert resolve(empty, Steering()).method == "base"


def test_presets_resolve(family: Family) -> None:
    check_methods(family)
    plan = resolve(family, preset_steering(family, "cheerful"))
    assert plan.method == "rewarded_soup" and plan.sources[0].coefficients == (("only-positive", 0.5),)
    with pytest.raises(KeyError):
        preset_steering(family, "gloomy")


@pytest.mark.parametrize(
    ("new", "key"),
    [
        ('name = "tiny"\ndefault_method = "mage"', "default_method: 'mage'"),
        ('name = "tiny"\ndefault_method = "sorcery"', "default_method: 'sorcery'"),
    ],
)
def test_a_default_method_must_be_there(root: Path, tmp_path: Path, new: str, key: str) -> None:
    with pytest.raises(FamilyError, match=key):
        check_methods(edited(root, tmp_path, 'name = "tiny"', new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('method = "rewarded_soup"', 'method = "mage"', "presets.cheerful.method: 'mage'"),
        ("preference = { positive = 1.0 }", "", "presets.cheerful: steering.preference"),
        ('method = "rewarded_soup"', 'method = "base"', "presets.cheerful: steering.strength"),
    ],
)
def test_presets_must_resolve(root: Path, tmp_path: Path, old: str, new: str, key: str) -> None:
    with pytest.raises(FamilyError, match=key):
        check_methods(edited(root, tmp_path, old, new))


def test_names_are_registered_once() -> None:
    # What a family without a default prefers.
    assert list(METHODS)[:4] == ["fitted_soup", "bone_soup", "rewarded_soup", "base"]
    assert all(name == method.name for name, method in METHODS.items())


def test_model_strings_can_ask_for_what_needs_no_option(guided: Family) -> None:
    names = usable_by_name(guided)
    assert set(METHODS) - set(names) == {"custom"}
    for name in names:
        assert resolve(guided, Steering(method=name, preference=MIX if takes_preference(name) else None)).method == name
    assert not takes_preference("cfg") and takes_preference("mage") and takes_preference("sorcery")


def test_a_request_asks_no_other_method_whether_it_is_available(family: Family, monkeypatch) -> None:
    """Whether others could be served is asked only to word an error."""
    asked: list[str] = []
    for name, method in METHODS.items():
        own = method.availability

        def availability(family: Family, stated: bool = False, name: str = name, own: Any = own) -> Any:
            asked.append(name)
            return own(family, stated)

        monkeypatch.setattr(method, "availability", availability)
    resolve(family, Steering(method="custom", terms=({"source": "base", "weight": 1.0},)))
    assert set(asked) == {"custom"}
    with pytest.raises(InputError, match="bone_soup"):
        resolve(family, Steering(method="fusion_route"))
    assert set(asked) == set(METHODS)
