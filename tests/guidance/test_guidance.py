"""What holds for every method that guides: identities, options, what is refused and why."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from guided_families import singles, value, with_values
from tiny_models import OBJECTIVES

from ladle.guidance.methods.merging_method import MergingMethod
from ladle.guidance.plan import Mask, Plan, PromptView, Source, Steering
from ladle.guidance.registry import METHODS, available, default_method, resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family

GUIDED = [name for name, method in METHODS.items() if name != "base" and not isinstance(method, MergingMethod)]
ROUTED = ("fusion_route", "co_llm")
SOUPS = ("mage", "amplify")  # what they guide is merged for the preference
PREFERRED = [name for name in GUIDED if METHODS[name].takes_preference]
SCORED = ("args", "fudge", "cd", "vas")
MIX = {"positive": 0.5, "simple": 0.25, "concise": 0.25}
BASE = Source("base", "base", 1.0, ())


def plan_of(family: Family, method: str, **steering: Any) -> Plan:
    if METHODS[method].takes_preference:
        steering.setdefault("preference", MIX)
    if method == "custom":
        steering.setdefault("terms", [{"source": "base", "weight": 1}])
    return resolve(family, Steering.parse({"method": method, **steering}))


def refused(family: Family, field: str, **steering: Any) -> str:
    with pytest.raises(InputError) as caught:
        resolve(family, Steering.parse(steering))
    assert caught.value.field == field
    return "; ".join(part for part in (caught.value.reason, caught.value.allowed) if part)


def test_everything_is_available_with_everything(guided: Family) -> None:
    assert {name for name, (ready, _) in available(guided).items() if not ready} == set()
    assert default_method(guided) == "fitted_soup"
    for name in GUIDED:
        plan = plan_of(guided, name)
        assert plan.method == name and not plan.sources[0].head


@pytest.mark.parametrize("method", [name for name in GUIDED if name not in (*SOUPS, "cfg", "custom", *ROUTED)])
@pytest.mark.parametrize("stated", [None, {"bone-positive": 1.5, "bone-simple": -0.5}])
def test_strength_0_is_the_base_alone(guided: Family, method: str, stated: dict[str, float] | None) -> None:
    if stated and "coefficients" not in METHODS[method].options:
        return
    plan = plan_of(guided, method, strength=0, coefficients=stated)
    base = Source("merged", "merged", 1.0, tuple(stated.items())) if stated else BASE
    assert plan.sources == (base,) and plan.mask is None and plan.scorer is None and plan.rule == "linear"


@pytest.mark.parametrize("kind", ["implicit", "explicit", "both"])
def test_mage_at_strength_0_is_the_soup(guided: Family, kind: str) -> None:
    soup = resolve(guided, Steering("bone_soup", MIX))
    plan = plan_of(guided, "mage", strength=0, value=kind)
    assert (plan.sources, plan.mask, plan.scorer) == (soup.sources, None, None)
    assert plan.coefficients == soup.coefficients


def test_amplify_goes_from_base_to_soup_and_beyond(guided: Family) -> None:
    soup = resolve(guided, Steering("bone_soup", MIX)).sources[0]
    plan = plan_of(guided, "amplify")
    assert [(source.coefficients, source.weight) for source in plan.sources] == [(soup.coefficients, 1.5), ((), -0.5)]
    assert plan_of(guided, "amplify", strength=0).sources == (soup,)
    back = plan_of(guided, "amplify", strength=-1)
    assert [(source.plain, source.weight) for source in back.sources] == [(True, 1.0)]
    same = plan_of(guided, "amplify", strength=2, coefficients={"bone-positive": 0.0})
    assert [(source.plain, source.weight) for source in same.sources] == [(True, 1.0)]


@pytest.mark.parametrize("method", [name for name in GUIDED if "kl_budget" in METHODS[name].options])
def test_a_budget_is_against_what_is_guided(guided: Family, method: str) -> None:
    plan, limited = plan_of(guided, method), plan_of(guided, method, kl_budget=0.25)
    # The base stays for comparison, even where its weight and the reference's cancel.
    assert limited.sources[0].role in ("base", "merged")
    kept = tuple(source for source in limited.sources if source.weight)
    assert limited.kl_budget == 0.25 and replace(limited, sources=kept) == replace(plan, kl_budget=0.25)
    # Nothing is added, so nothing can go too far.
    assert plan_of(guided, method, kl_budget=0.25, strength=0).kl_budget is None


@pytest.mark.parametrize("method", PREFERRED)
def test_a_corner_asks_the_one_objective_alone(guided: Family, method: str) -> None:
    """Nothing of the others is left, not even with weight 0, and merged is the same as ensembled."""
    plan = plan_of(guided, method, preference={"simple": 3})
    if method == "amplify":
        assert {name for source in plan.sources for name, _ in source.coefficients} == set(guided.backbones)
        return
    named = {name for source in plan.sources[method == "mage" :] for name, _ in (*source.coefficients, *source.head)}
    assert named <= {"tuned-simple", "scorer-simple", "only-simple", "arm", "arm@simple"} and named
    if "combine" in METHODS[method].options:
        apart = plan_of(guided, method, preference={"simple": 3}, combine="ensemble")
        together = plan_of(guided, method, preference={"simple": 3}, combine="merged")
        assert apart == together
    assert any("normalised" in warning for warning in plan.warnings)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd", "alpha"])
def test_mod_at_a_corner_is_that_policy(guided: Family, divergence: str) -> None:
    alpha = 0.3 if divergence == "alpha" else None
    plan = plan_of(guided, "mod", preference={"simple": 1}, divergence=divergence, alpha=alpha)
    assert plan.sources == (Source("only-simple", "policy", 1.0, (("only-simple", 1.0),)),)
    assert plan.rule == "linear"


@pytest.mark.parametrize("negative", [None, "Be sad."])
def test_cfg_at_1_is_the_conditional_model(guided: Family, negative: str | None) -> None:
    plan = plan_of(guided, "cfg", strength=1, negative_prompt=negative)
    assert plan.sources == (BASE,)
    nothing = plan_of(guided, "cfg", strength=0, negative_prompt=negative)
    view = PromptView("system", negative) if negative else PromptView("prompt", "")
    assert [(source.view, source.weight) for source in nothing.sources] == [(view, 1.0)]


def test_a_guide_that_is_the_reference_leaves_the_base(guided: Family, seed: int) -> None:
    """Sources with the plain model's weights are the plain model."""
    eta = float(np.random.default_rng(seed).uniform(-9, 9))
    terms = [
        {"source": {"bone-positive": 0.5}, "weight": 1},
        {"source": {"tuned-simple": 0.0}, "weight": eta},
        {"source": "base", "weight": -eta},
    ]
    plan = plan_of(guided, "custom", terms=terms)
    assert [(source.coefficients, source.weight) for source in plan.sources] == [((("bone-positive", 0.5),), 1.0)]


@pytest.mark.parametrize("method", GUIDED)
def test_a_traced_plan_has_the_plain_base_once(guided: Family, method: str) -> None:
    for steering in ({}, {"strength": 0}, {"coefficients": {"bone-simple": 1.0}}):
        if steering.keys() <= METHODS[method].options:
            plan = plan_of(guided, method, trace=True, **steering)
            assert sum(source.plain for source in plan.sources) == 1
            silent = plan_of(guided, method, **steering)
            extra = [source for source in plan.sources if source not in silent.sources]
            assert extra in ([], [Source("base", "reference", 0.0, ())]) and plan.trace


@pytest.mark.parametrize("method", GUIDED)
def test_sources_are_distinct_and_none_is_computed_in_vain(guided: Family, method: str) -> None:
    plan = plan_of(guided, method)
    keys = [(source.coefficients, source.model, source.view, source.head) for source in plan.sources]
    assert len(set(keys)) == len(keys)
    assert all(source.weight for source in plan.sources[plan.mask is not None :])


@pytest.mark.parametrize("method", PREFERRED)
def test_a_preference_is_needed(guided: Family, method: str) -> None:
    assert method in refused(guided, "steering.preference", method=method)


@pytest.mark.parametrize("method", [name for name in GUIDED if name not in (*PREFERRED, *ROUTED)])
def test_a_preference_without_use_is_said(guided: Family, method: str) -> None:
    plan = plan_of(guided, method, preference=MIX)
    assert plan.preference is not None and f"method {method} ignores the preference" in plan.warnings
    assert plan.sources == plan_of(guided, method).sources


OPTIONS: dict[str, Any] = {
    "strength": 0.75,
    "value": "implicit",
    "base": "fitted_soup",
    "combine": "merged",
    "candidates": 3,
    "coefficients": {"bone-simple": 1.0},
    "terms": [{"source": "base", "weight": 1}],
    "normalize": "sum",
    "negative_prompt": "x",
    "divergence": "forward_kl",
    "alpha": 2.0,
    "complement": 0.5,
    "expert_weight": 2.0,
    "top_experts": 2,
    "min_stay": 4,
    "threshold": 0.25,
    "kl_budget": 0.5,
}

# Where the option asks for what the method does anyway.
UNCHANGED = {
    ("mage", "value"),
    ("mage", "combine"),
    ("mage", "normalize"),
    ("pad", "combine"),
    ("bone_soup", "normalize"),
    ("rewarded_soup", "normalize"),
    ("custom", "normalize"),
    ("custom", "terms"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_works_or_is_refused(guided: Family, method: str, option: str) -> None:
    steering: dict[str, Any] = {"method": method, "preference": MIX, option: OPTIONS[option]}
    if method == "custom":
        steering.setdefault("terms", OPTIONS["terms"])
    if option not in METHODS[method].options:
        assert f"not supported by method {method}" in refused(guided, f"steering.{option}", **steering)
        return
    if option == "alpha":
        steering["divergence"] = "alpha"
    if (method, option) == ("mage", "candidates"):
        steering["value"] = "explicit"
    with_option = resolve(guided, Steering.parse(steering))
    if (method, option) in UNCHANGED:
        return
    for key in (option, "divergence") if option == "alpha" else (option,):
        del steering[key]
    assert replace(with_option, normalize="none") != resolve(guided, Steering.parse(steering))


@pytest.mark.parametrize("method", METHODS)
def test_two_strengths_are_for_both_kinds_only(guided: Family, method: str) -> None:
    two = {"implicit": 1.0, "explicit": 2.0}
    steering: dict[str, Any] = {"method": method, "preference": MIX, "strength": two}
    refused(guided, "steering.strength", **steering)
    if method == "mage":
        plan = resolve(guided, Steering.parse({**steering, "value": "both"}))
        assert plan.scorer is not None and plan.scorer.strength == 2.0


def test_mage_says_which_values_there_are(guided: Family) -> None:
    implicit = with_values(guided, *singles("tuned"))
    explicit = with_values(guided, *singles("scorer", "explicit"))
    assert plan_of(implicit, "mage").scorer is None and plan_of(explicit, "mage").scorer is not None
    for wanted in ("explicit", "both"):
        said = refused(implicit, "steering.value", method="mage", preference=MIX, value=wanted)
        assert said == "the family has no explicit values; implicit"
    refused(explicit, "steering.value", method="mage", preference=MIX, value="implicit")
    refused(guided, "steering.candidates", method="mage", preference=MIX, candidates=5)
    refused(guided, "steering.candidates", method="mage", preference=MIX, candidates=5, value="implicit")


def test_mage_on_stated_coefficients(guided: Family) -> None:
    stated = {"bone-positive": 0.25}
    plan = plan_of(guided, "mage", coefficients=stated)
    assert plan.coefficients is not None and plan.coefficients.as_dict() == stated
    assert any("weighs only the values" in warning for warning in plan.warnings)
    refused(guided, "steering.preference", method="mage", coefficients=stated)
    # They stand in for the matrix that stage 1 would need, but not for the values of stage 2.
    bare = replace(guided, matrix=None)
    assert "matrix" in available(bare)["mage"][1]
    assert plan_of(bare, "mage", coefficients=stated).sources == plan.sources
    nothing = with_values(guided)
    assert "implicit" in refused(nothing, "steering.method", method="mage", preference=MIX, coefficients=stated)


@pytest.mark.parametrize("method", ["genarm", "vas", "parm", "contrastive"])
def test_stated_coefficients_do_not_stand_in_for_values(family: Family, method: str) -> None:
    refused(family, "steering.method", method=method, preference=MIX, coefficients={"bone-simple": 1.0})


@pytest.mark.parametrize(
    ("strength", "field"), [(-0.1, "steering.strength"), (1.1, "steering.strength"), (0.5, None), (1.0, None)]
)
@pytest.mark.parametrize("options", [{"divergence": "forward_kl"}, {"divergence": "alpha", "alpha": 0.5}])
def test_mod_weighs_no_policy_below_0(guided: Family, strength: float, field: str | None, options: Any) -> None:
    if field:
        refused(guided, field, method="mod", preference=MIX, strength=strength, **options)
    else:
        assert all(source.weight > 0 for source in plan_of(guided, "mod", strength=strength, **options).sources)


def test_mod_needs_alpha_where_it_counts(guided: Family) -> None:
    refused(guided, "steering.alpha", method="mod", preference=MIX, divergence="alpha")
    refused(guided, "steering.alpha", method="mod", preference=MIX, alpha=0.5)
    refused(guided, "steering.alpha", method="mod", preference=MIX, alpha=0.5, divergence="forward_kl")


def test_genarm_prefers_values_without_a_reference(guided: Family) -> None:
    plan = plan_of(guided, "genarm")
    assert any("tuned-positive" in warning and "leaves out" in warning for warning in plan.warnings)
    arms = with_values(guided, *singles("tuned"), *singles("arm", reference=False))
    plan = plan_of(arms, "genarm")
    assert [source.name for source in plan.sources[1:]] == [f"arm-{name}" for name in OBJECTIVES]
    assert not plan.warnings
    assert "with a reference" in available(with_values(guided, *singles("arm", reference=False)))["proxy_tuning"][1]


def test_normalize_scales_the_values_along(guided: Family) -> None:
    arms = with_values(guided, *singles("arm", reference=False), *singles("scorer", "explicit"))
    steering = {"preference": MIX, "value": "both", "combine": "merged", "strength": {"implicit": 3.0, "explicit": 2.0}}
    plan = plan_of(arms, "mage", **steering, normalize="sum")
    assert [source.weight for source in plan.sources] == [0.25, 0.75, 1.0]
    assert plan.scorer is not None and plan.scorer.strength == 0.5
    refused(guided, "steering.normalize", method="genarm", preference=MIX, strength=-1, normalize="sum")


@pytest.mark.parametrize(
    ("changes", "method", "reason"),
    [
        ({"values": ()}, "mage", "no implicit values; the family has no explicit values"),
        ({"matrix": None}, "mage", "backbone-reward matrix"),
        ({"backbones": ()}, "mage", "no backbones"),
        ({"singles": {"positive": "only-positive"}}, "mod", "no policy for objective 'simple', 'concise'"),
        ({"values": ()}, "genarm", "no implicit values"),
        ({"values": singles("x")[:1]}, "pad", "no implicit value for objective 'simple', 'concise'"),
        ({"values": singles("x")}, "vas", "no explicit values"),
        ({"values": singles("x")}, "parm", r"conditioned on the preference \(PBLoRA\)"),
        ({"values": (value("a", conditioned=(("simple", "a@simple"),)),)}, "parm", "'a' is not conditioned on every"),
        ({"values": ()}, "proxy_tuning", "no implicit values with a reference"),
        ({"values": ()}, "dexperts", "no implicit values"),
        ({"amateur": None}, "contrastive", "no amateur"),
        *(({"experts": (), "router": None}, name, "no experts with a router") for name in ROUTED),
        *(({"values": singles("x", "explicit")[1:]}, name, "no explicit value for objective 'pos") for name in SCORED),
    ],
)
def test_methods_say_what_a_family_lacks(guided: Family, changes: dict[str, Any], method: str, reason: str) -> None:
    lacking = replace(guided, **changes)
    ready, why = available(lacking)[method]
    assert not ready
    with pytest.raises(InputError, match=rf"'{method}' is not allowed: .*{reason}") as caught:
        plan_of(lacking, method)
    assert caught.value.field == "steering.method" and why in str(caught.value)


def test_masks_follow_the_papers(guided: Family) -> None:
    masks = {name: plan_of(guided, name).mask for name in GUIDED}
    assert {name: mask for name, mask in masks.items() if mask} == {
        "dexperts": Mask("top_p", 0.9),
        "contrastive": Mask("relative", 0.1),
        "pad": Mask("top_k", 10),
    }
    scorers = {name: plan_of(guided, name).scorer for name in SCORED}
    seen = {name: (s.candidates, s.transform, s.centred, s.restricted) for name, s in scorers.items() if s}
    assert seen == {
        "args": (10, "identity", False, True),
        "fudge": (200, "log_sigmoid", False, True),
        "cd": (20, "identity", False, True),
        "vas": (20, "identity", True, False),
    }


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        (None, "steering.terms"),
        ([], "steering.terms"),
        ([{"source": "base", "weight": 1}] * 33, "steering.terms"),
        (["base"], "steering.terms[0]"),
        ([{"source": "base", "weight": 1}, {"source": "base", "weight": 1, "colour": 2}], "steering.terms[1].colour"),
        ([{"source": "base"}], "steering.terms[0].weight"),
        ([{"source": "base", "weight": True}], "steering.terms[0].weight"),
        ([{"source": "base", "weight": float("nan")}], "steering.terms[0].weight"),
        ([{"source": "base", "weight": 10**400}], "steering.terms[0].weight"),
        ([{"source": "base", "weight": "1"}], "steering.terms[0].weight"),
        ([{"source": "base", "weight": 1, "system": 3}], "steering.terms[0].system"),
        ([{"weight": 1}], "steering.terms[0].source"),
        ([{"source": "nobody", "weight": 1}], "steering.terms[0].source"),
        ([{"source": "", "weight": 1}], "steering.terms[0].source"),
        ([{"source": ["base"], "weight": 1}], "steering.terms[0].source"),
        ([{"source": "scorer-simple", "weight": 1}], "steering.terms[0].source"),
        ([{"source": "arm", "weight": 1}], "steering.terms[0].source"),
        ([{"source": {}, "weight": 1}], "steering.terms[0].source"),
        ([{"source": {"nobody": 1}, "weight": 1}], "steering.terms[0].source.nobody"),
        ([{"source": {"bone-simple": "1"}, "weight": 1}], "steering.terms[0].source.bone-simple"),
        ([{"source": {"scorer-simple": 1}, "weight": 1}], "steering.terms[0].source.scorer-simple"),
        ([{"source": {"bone-simple": 1, "tiny": 1}, "weight": 1}], "steering.terms[0].source"),
        ([{"source": "base", "weight": 1}, {"source": {"bone-simple": 0}, "weight": -1}], "steering.terms"),
    ],
)
def test_terms_that_make_no_sense_are_named(guided: Family, terms: Any, field: str) -> None:
    small = with_values(guided, *guided.values, value("tiny", model="small"))
    refused(small, field, method="custom", terms=terms)


def test_a_term_may_have_its_own_system_message(guided: Family) -> None:
    told = with_values(guided, value("told", system="Own words."))
    terms: list[dict[str, Any]] = [
        {"source": "told", "weight": 1},
        {"source": "told", "weight": 1, "system": "Other words."},
    ]
    views = [source.view for source in plan_of(told, "custom", terms=terms).sources]
    assert views == [PromptView("system", "Own words."), PromptView("system", "Other words.")]
