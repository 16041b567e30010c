"""Plans that route: sources, what lies under the experts, options, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guided_families import with_experts
from routed_folder import EXPERTS, write_routed_family
from tiny_models import OBJECTIVES

from ladle.guidance.check import report_family
from ladle.guidance.offline import merge_offline
from ladle.guidance.plan import Plan, Routing, Source, Steering
from ladle.guidance.registry import METHODS, available, check_methods, resolve, takes_preference, usable_by_name
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family, load_family

ROUTED = ("fusion_route", "co_llm")
NAMES = ("math", "json", "chat")
MIX = {"positive": 0.5, "simple": 0.25, "concise": 0.25}
HARD = Routing(source=0, head="router", experts=(1, 2, 3))


def plan_of(family: Family, method: str = "fusion_route", **steering: Any) -> Plan:
    return resolve(family, Steering.parse({"method": method, **steering}))


def refused(family: Family, method: str = "fusion_route", **steering: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        plan_of(family, method, **steering)
    return caught.value


def source(name: str, weight: float = 1.0, **below: float) -> Source:
    return Source(name, "router" if name == "router" else "expert", weight, (*below.items(), (name, 1.0)))


def test_fusion_route_adds_router_and_expert(guided: Family) -> None:
    plan = plan_of(guided)
    assert plan.sources == tuple(source(name) for name in ("router", *NAMES))
    assert plan.routing == HARD and (plan.rule, plan.mask, plan.scorer, plan.blocks) == ("linear", None, None, None)
    assert plan.coefficients is None and plan.preference is None and plan.warnings == ()
    assert not takes_preference("fusion_route") and not takes_preference("co_llm")


def test_the_options_are_the_plan_s(guided: Family, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = float(rng.uniform(0, 3)), float(rng.uniform(0.1, 3))
    plan = plan_of(guided, complement=a, expert_weight=b, min_stay=7)
    assert plan.routing == replace(HARD, complement=a, weight=b, stay=7)
    assert [source.weight for source in plan.sources] == [a, b, b, b]
    soft = plan_of(guided, top_experts=3, min_stay=1).routing
    assert soft == replace(HARD, top=3)


def test_routing_alone_still_asks_the_router(guided: Family) -> None:
    plan = plan_of(guided, complement=0)
    assert plan.routing is not None and plan.routing.complement == 0.0
    assert [source.weight for source in plan.sources] == [0.0, 1.0, 1.0, 1.0] and plan.sources[0].name == "router"


def test_normalize_divides_what_is_shown(guided: Family, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = float(rng.uniform(0, 3)), float(rng.uniform(0.1, 3))
    plan = plan_of(guided, complement=a, expert_weight=b, normalize="sum")
    assert plan.normalize == "sum" and plan.routing is not None
    # The plan's own numbers stay as they were asked for; `normalize` says that they are to be divided.
    assert (plan.routing.complement, plan.routing.weight) == (a, b)
    weights = [source.weight for source in plan.sources]
    assert weights == pytest.approx([a / (a + b), *[b / (a + b)] * 3])
    assert [source.weight for source in plan_of(guided, complement=0, normalize="sum").sources[1:]] == [1.0] * 3


def test_co_llm_defers(guided: Family) -> None:
    plan = plan_of(guided, "co_llm")
    assert plan.routing == replace(HARD, complement=0.0, threshold=0.5)
    assert [source.weight for source in plan.sources] == [1.0] * 4
    for threshold in (0.0, 0.125, 1.0):
        found = plan_of(guided, "co_llm", threshold=threshold).routing
        assert found is not None and found.threshold == threshold


def test_co_llm_needs_a_deferral_logit(guided: Family) -> None:
    without = with_experts(guided, *NAMES, defer=False)
    ready, reason = available(without)["co_llm"]
    assert not ready and "'router' has no deferral logit" in reason and available(without)["fusion_route"][0]
    assert refused(without, "co_llm").field == "steering.method"


def test_one_expert_is_enough(guided: Family) -> None:
    for method in ROUTED:
        plan = plan_of(with_experts(guided, "math"), method)
        assert plan.routing is not None and plan.routing.experts == (1,) and len(plan.sources) == 2


@pytest.mark.parametrize("method", ROUTED)
def test_a_preference_merges_the_base_under_all_of_them(guided: Family, method: str, mu: dict[str, float]) -> None:
    soup = resolve(guided, Steering("bone_soup", mu))
    plan = plan_of(guided, method, preference=mu)
    assert plan.preference is not None and plan.coefficients == soup.coefficients and soup.coefficients is not None
    below = soup.coefficients.as_dict()
    for name, found in zip(("router", *NAMES), plan.sources, strict=True):
        assert dict(found.coefficients) == {**below, name: 1.0}
    assert plan.routing == plan_of(guided, method).routing
    assert any("normalised" in warning for warning in plan_of(guided, method, preference={"simple": 4}).warnings)


@pytest.mark.parametrize("method", ROUTED)
def test_stated_coefficients_merge_it_too(guided: Family, method: str, family: Family) -> None:
    stated = {"bone-positive": 0.25, "only-simple": -1.5}
    plan = plan_of(guided, method, coefficients=stated)
    for name, found in zip(("router", *NAMES), plan.sources, strict=True):
        assert dict(found.coefficients) == {**stated, name: 1.0}
    ignored = plan_of(guided, method, coefficients=stated, preference=MIX)
    assert ignored.sources == plan.sources and any("no effect" in warning for warning in ignored.warnings)
    assert refused(guided, method, coefficients={"nobody": 1.0}).field == "steering.coefficients.nobody"


@pytest.mark.parametrize("method", ROUTED)
def test_a_preference_needs_something_to_merge(guided: Family, method: str) -> None:
    error = refused(replace(guided, matrix=None), method, preference=MIX)
    assert error.field == "steering.preference" and "backbone-reward matrix" in (error.reason or "")
    assert refused(guided, method, preference={"wit": 1}).field == "steering.preference.wit"
    assert plan_of(replace(guided, matrix=None, backbones=()), method).coefficients is None


@pytest.mark.parametrize("method", ROUTED)
def test_a_trace_brings_the_reference(guided: Family, method: str) -> None:
    plan, silent = plan_of(guided, method, trace=True), plan_of(guided, method)
    assert plan.sources == (*silent.sources, Source("base", "reference", 0.0, ()))
    assert plan.routing == silent.routing


def test_experts_that_share_a_member_keep_their_names(guided: Family) -> None:
    """An expert that is a backbone adds up with the soup; one that is also the router is a source besides it."""
    members = {**guided.members_of, "math": "bone-positive", "json": "router"}
    shared = replace(guided, members_of=members)
    plan = plan_of(shared, coefficients={"bone-positive": 0.25})
    assert [found.name for found in plan.sources] == ["router", *NAMES] and plan.routing == HARD
    assert dict(plan.sources[1].coefficients) == {"bone-positive": 1.25}
    assert plan.sources[0].coefficients == plan.sources[2].coefficients == (("bone-positive", 0.25), ("router", 1.0))
    # What cancels out is not computed.
    assert plan_of(shared, coefficients={"bone-positive": -1.0}).sources[1].coefficients == ()


@pytest.mark.parametrize(
    ("steering", "field", "allowed"),
    [
        ({"top_experts": 4}, "top_experts", "from 1 to 3"),
        ({"top_experts": 2, "min_stay": 2}, "min_stay", "the mixture of top_experts 2 has no expert"),
        ({"threshold": 0.5}, "threshold", "not supported by method fusion_route"),
        ({"strength": 0.5}, "strength", "not supported"),
        ({"candidates": 5}, "candidates", "not supported"),
        ({"method": "co_llm", "complement": 1.0}, "complement", "not supported by method co_llm"),
        ({"method": "co_llm", "expert_weight": 1.0}, "expert_weight", "not supported"),
        ({"method": "co_llm", "top_experts": 1}, "top_experts", "not supported"),
        ({"method": "co_llm", "min_stay": 2}, "min_stay", "not supported"),
        ({"method": "co_llm", "normalize": "sum"}, "normalize", "not supported"),
        ({"method": "base", "complement": 0.0}, "complement", "not supported by method base"),
    ],
)
def test_what_cannot_be_done_is_named(guided: Family, steering: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(InputError, match=allowed) as caught:
        resolve(guided, Steering.parse({"method": "fusion_route", **steering}))
    assert caught.value.field == f"steering.{field}"


def test_no_other_method_routes(guided: Family) -> None:
    for name, method in METHODS.items():
        steering: dict[str, Any] = {"method": name}
        if method.takes_preference:
            steering["preference"] = MIX
        if name == "custom":
            steering["terms"] = [{"source": "base", "weight": 1}]
        assert (resolve(guided, Steering.parse(steering)).routing is None) == (name not in ROUTED)


PRESETS = """
[presets.routed]
method = "fusion_route"
complement = 0.5
expert_weight = 1.5
min_stay = 3
normalize = "sum"
preference = { positive = 1.0 }
[presets.mixed]
method = "fusion_route"
top_experts = 2
[presets.deferred]
method = "co_llm"
threshold = 0.25
"""


def test_a_family_on_disk(tmp_path: Path, seed: int) -> None:
    root = write_routed_family(
        tmp_path / "family", "llama", seed, full=("json",), defer=True, extra='default_method = "fusion_route"'
    )
    # A key of the family itself cannot follow a table.
    text = (root / "family.toml").read_text().replace('default_method = "fusion_route"', PRESETS)
    (root / "family.toml").write_text('default_method = "fusion_route"\n' + text)
    family = load_family(root)
    check_methods(family)
    assert set(ROUTED) <= {*usable_by_name(family)}
    for steering in ({}, {"preference": dict.fromkeys(OBJECTIVES[:2], 1.0)}):
        plan = resolve(family, Steering.parse(steering))
        assert plan.method == "fusion_route" and plan.routing == HARD
        for found in plan.sources:
            assert {name for name, _ in found.coefficients} <= {*family.low_rank, *family.full}
        assert [found.name for found in plan.sources] == ["router", *EXPERTS[:3]]
    routings = [
        resolve(family, Steering.parse(preset.model_dump(exclude_none=True))).routing
        for preset in family.manifest.presets.values()
    ]
    assert routings == [
        replace(HARD, complement=0.5, weight=1.5, stay=3),
        replace(HARD, top=2),
        replace(HARD, complement=0.0, threshold=0.25),
    ]
    report = report_family(family)
    assert report.methods["fusion_route"] == report.methods["co_llm"] == (True, "")
    assert report.default_method == "fusion_route" and "router router" in report.text()


def test_a_preset_for_more_experts_than_there_are_is_refused_at_start(tmp_path: Path, seed: int) -> None:
    extra = '[presets.many]\nmethod = "fusion_route"\ntop_experts = 3\n'
    family = load_family(write_routed_family(tmp_path / "family", "llama", seed, experts=2, extra=extra))
    with pytest.raises(FamilyError, match=r"presets\.many: steering\.top_experts"):
        check_methods(family)


@pytest.mark.parametrize("method", ROUTED)
def test_routing_is_no_checkpoint(tmp_path: Path, seed: int, method: str) -> None:
    """Not even where a single source has weight: its router decides what it says."""
    family = load_family(write_routed_family(tmp_path / "family", "llama", seed, experts=1, defer=True))
    steering = Steering(method=method, complement=0.0 if method == "fusion_route" else None)
    with pytest.raises(InputError, match="one set of weights"):
        merge_offline(family, steering, tmp_path / "out")
