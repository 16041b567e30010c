"""Sequences of several lanes: exact identities of the methods, seeds, stops, cancelling, reuse of prefixes."""

import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guided_folder import write_guided_family, write_head
from guided_requests import World
from seeds import fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, random_prompt, serve
from tiny_models import write_lora_member

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

ROOMY: dict[str, Any] = {"max_sequences": 40, "max_lanes": 200}


@pytest.fixture(scope="module", params=["singles", "small"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = random.Random(fresh_seed())
    return World(tmp_path_factory.mktemp("family"), rng, kind=request.param)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[int, float, tuple[tuple[int, float], ...]]]:
    return [(output.token, output.logprob, output.top) for output in outputs]


def preference(*weights: float) -> dict[str, float]:
    return dict(zip(("positive", "simple"), weights, strict=True))


def explicit(**options: Any) -> dict[str, Any]:
    return {"method": "mage", "value": "explicit", "preference": preference(0.4, 0.6), **options}


# -- identities, bit for bit ------------------------------------------------------------------------------------------


def same_as(world: World, rng: random.Random, plain: Mapping[str, Any], guided: Sequence[Mapping[str, Any]]) -> None:
    """Each of ``guided`` gives the numbers of ``plain``, all in one batch."""
    engine = build(world.family, **ROOMY)
    prompts = world.prompts(rng)
    options: dict[str, Any] = {"seed": rng.getrandbits(40), "logprobs": 5, "max_tokens": 6}
    asked = {f"r{index}": steering for index, steering in enumerate([plain, *guided])}
    outputs = serve(engine, [world.request(name, one, prompts, **options) for name, one in asked.items()], rng)
    for name, steering in asked.items():
        assert numbers(outputs[name]) == numbers(outputs["r0"]), steering


def test_strength_zero_is_the_base(world: World, rng: random.Random) -> None:
    nothing: dict[str, Any] = {"preference": preference(0.3, 0.7), "strength": 0}
    guided = [
        {**nothing, "method": method, "trace": trace}
        for method in ("mod", "genarm", "pad", "proxy_tuning", "dexperts", "args", "fudge", "cd", "vas")
        for trace in (False, True)
    ]
    one = {"method": "contrastive", "strength": 0}
    same_as(world, rng, {"method": "base"}, [*guided, one, {"method": "cfg", "strength": 1}])
    coefficients = {"bone-positive": 0.75, "bone-simple": -0.5}
    merged = [{**steering, "coefficients": coefficients} for steering in guided if steering["method"] != "mod"]
    same_as(world, rng, {"method": "bone_soup", "coefficients": coefficients}, merged)
    soup = [{**nothing, "method": "mage", "value": value} for value in ("explicit", "both") if world.kind == "singles"]
    soup += [{**nothing, "method": "mage", "value": "implicit", **more} for more in ({}, {"kl_budget": 0.1})]
    soup.append({**nothing, "method": "amplify"})
    same_as(world, rng, {"method": "bone_soup", "preference": preference(0.3, 0.7)}, soup)


def test_a_budget_that_is_never_reached_changes_nothing(world: World, rng: random.Random) -> None:
    for method in ("amplify", "proxy_tuning"):
        steering = {"method": method, "preference": preference(0.3, 0.7), "strength": 0.75}
        same_as(world, rng, steering, [{**steering, "kl_budget": 100}])


def test_a_budget_is_kept_at_every_token(world: World, rng: random.Random) -> None:
    engine, prompts = build(world.family, dtype="float64", **ROOMY), world.prompts(rng)
    for method in ("mage", "amplify", "proxy_tuning", "genarm"):
        steering = {"method": method, "preference": preference(0.3, 0.7), "strength": 3.0}
        steering |= {"value": "implicit"} if method == "mage" else {}
        limited = {**steering, "kl_budget": 10 ** rng.uniform(-3, -1)}
        outputs = alone(engine, world.request("r", limited, prompts, seed=3, logprobs=5))
        # The trials end within 1e-4 of the root of the budget.
        world.check(limited, prompts, outputs, tolerance=2e-3, greedy=False)
        with pytest.raises(AssertionError):
            world.check(steering, prompts, outputs, tolerance=2e-3, greedy=False)


def test_one_objective_at_weight_one_is_its_member(world: World, rng: random.Random) -> None:
    corner = {"preference": preference(0, 1)}
    plain = {"method": "custom", "terms": [{"source": "only-simple", "weight": 1}]}
    guided = [{"method": "mod", **corner, "divergence": name} for name in ("reverse_kl", "forward_kl", "jsd")]
    guided += [{"method": "mod", **corner, "divergence": "alpha", "alpha": 0.3}, {"method": "rewarded_soup", **corner}]
    same_as(world, rng, plain, guided)


def test_a_guide_that_is_its_reference_leaves_the_base(tmp_path: Path, rng: random.Random) -> None:
    """Values whose adapters are zero: merged, they cancel bit for bit; the shares of an ensemble, to rounding."""
    for kind in ("singles", "small"):
        world = World(tmp_path / kind, rng, kind=kind, size=0.0)
        coefficients = {"bone-positive": 0.7, "only-simple": 0.2}
        soup = {"method": "bone_soup", "coefficients": coefficients}
        mage = {"method": "mage", "value": "implicit", "strength": 1.3, "coefficients": coefficients}
        # Values with system messages of their own cannot be merged; one objective is one value either way.
        exact = [{**mage, "preference": preference(1, 0)}]
        exact += [{**mage, "preference": preference(0.3, 0.7)}] if kind == "singles" else []
        same_as(world, rng, soup, exact)
        engine, prompts = build(world.family, **ROOMY), world.prompts(rng)
        ensemble = {**mage, "preference": preference(0.3, 0.7), "combine": "ensemble"}
        proxy = {"method": "proxy_tuning", "preference": preference(0.3, 0.7), "strength": 1.3}
        for guided, plain in ((ensemble, soup), (proxy, {"method": "base"})):
            ours, theirs = (alone(engine, world.request("r", one, prompts, seed=5)) for one in (guided, plain))
            assert [output.token for output in ours] == [output.token for output in theirs]
            assert [o.logprob for o in ours] == pytest.approx([o.logprob for o in theirs], abs=1e-5)


@pytest.mark.parametrize("where", ["value head", "lm_head"])
def test_ensembled_equals_merged_where_only_a_linear_head_differs(
    where: str, tmp_path: Path, rng: random.Random
) -> None:
    root = write_guided_family(tmp_path, "llama", rng.randrange(1000))
    values = root / "values"
    for index, name in enumerate(("positive", "simple")):
        if where == "lm_head":
            shutil.rmtree(values / f"tuned-{name}")
            write_lora_member(values / f"tuned-{name}", root / "base", index, r=2 + index, target_modules=["lm_head"])
        else:
            shutil.rmtree(values / f"score-{name}")
            write_lora_member(values / f"score-{name}", root / "base", 17)
            write_head(values / f"score-{name}", 32, index)
    family = load_family(root)
    engine = build(family, dtype="float64")
    prompt = random_prompt(rng, 5, 30)
    # Shares whose merge coefficients are not rounded, so that the trunk's are exactly 1.
    kind = "implicit" if where == "lm_head" else "explicit"
    steering = {"method": "mage", "value": kind, "preference": preference(0.25, 0.75), "strength": 1.7}
    both = {}
    for combine in ("merged", "ensemble"):
        plan = resolve(family, Steering.parse({**steering, "combine": combine}))
        both[combine] = alone(engine, GenerationRequest("r", prompt, plan, SamplingParams(max_tokens=8, seed=3)))
        assert len(plan.sources) == {"merged": 2, "ensemble": 3}[combine] + (kind == "implicit")
    merged, ensembled = both["merged"], both["ensemble"]
    assert [output.token for output in merged] == [output.token for output in ensembled]
    assert [o.logprob for o in merged] == pytest.approx([o.logprob for o in ensembled], abs=1e-10)
    steering["strength"] = 0.0
    plan = resolve(family, Steering.parse(steering))
    plain = alone(engine, GenerationRequest("r", prompt, plan, SamplingParams(max_tokens=8, seed=3)))
    assert [o.logprob for o in merged] != pytest.approx([o.logprob for o in plain], abs=1e-3), "the heads do something"


# -- what holds for any sequence --------------------------------------------------------------------------------------


def steerings(world: World, rng: random.Random) -> list[dict[str, Any]]:
    """Two, three and more lanes, with values and without."""
    chosen = world.steerings(rng, ["mage", "mod", "dexperts", "cfg", "vas", "args", "custom"])
    return rng.sample(chosen, 6)


def test_seeds_decide(world: World, rng: random.Random) -> None:
    engine = build(world.family, **ROOMY)
    prompts = world.prompts(rng)
    varied = []
    for steering in steerings(world, rng):
        options = {"max_tokens": 10, "temperature": 1.2}
        wanted = [world.request(f"s{seed}", steering, prompts, seed=seed, **options) for seed in (1, 2, 3, 2**64 - 1)]
        first, again = serve(engine, wanted, rng), serve(engine, wanted, rng)
        texts = {name: [output.token for output in outputs] for name, outputs in first.items()}
        assert texts == {name: [output.token for output in outputs] for name, outputs in again.items()}
        varied.append(len(set(map(tuple, texts.values()))) > 1)
    # A mask or great weights may leave one token with a chance at every place, but not under every steering.
    assert any(varied)


def test_stop_strings(world: World, rng: random.Random) -> None:
    engine = build(world.family, **ROOMY)
    met = 0
    for index, steering in enumerate(steerings(world, rng)):
        prompts, options = world.prompts(rng), {"max_tokens": 24, "seed": index, "temperature": 1.5}
        text = "".join(o.text for o in alone(engine, world.request("r", steering, prompts, **options)))
        runs = [run for run in text.split("\ufffd") if run]
        if not runs:
            continue
        run = rng.choice(runs)
        start = rng.randrange(len(run))
        stop = run[start : start + rng.randint(1, 4)]
        outputs = alone(engine, world.request("r", steering, prompts, stop=(stop, "never said"), **options))
        assert "".join(o.text for o in outputs) == text[: text.find(stop)]
        assert outputs[-1].finish_reason == "stop"
        met += 1
    assert met > 1


def test_cancelled_anywhere(world: World, rng: random.Random) -> None:
    """Waiting, in prefill of some lanes, between candidates and the next token: the others are not disturbed."""
    engine = build(world.family, max_sequences=4, max_lanes=40, max_batch_tokens=1)
    other = world.request("other", explicit(candidates=9), world.prompts(rng), max_tokens=25)
    expected = numbers(alone(engine, other))
    for steps in [0, 1, 2, 5, 12]:
        collector = Collector()
        engine.submit(other, collector)
        victims = [f"v{index}" for index in range(6)]
        for name, steering in zip(victims, steerings(world, rng), strict=True):
            engine.submit(world.request(name, steering, world.prompts(rng, 80)), collector)
        for _ in range(steps):
            engine.step()
        given = {name: len(collector.outputs.get(name, [])) for name in victims}
        for name in victims:
            engine.cancel(name)
        engine.step()
        engine.check_integrity()
        assert engine.stats().waiting == 0 and engine.stats().running <= 1, "freed within one step"
        drain(engine)
        assert {name: len(collector.outputs.get(name, [])) for name in victims} == given, "output after cancelling"
        assert numbers(collector.outputs["other"]) == expected
        assert_idle(engine)


def test_conversations_reuse_their_own_answers(world: World, rng: random.Random) -> None:
    """Every lane finds its state again, that of chosen candidates included."""
    warm, cold = build(world.family, **ROOMY), build(world.family, **ROOMY, prefix_cache=False)
    for steering in [explicit(strength=0.9), *steerings(world, rng)[:2]]:
        prompts = world.prompts(rng, 30)
        for turn in range(3):
            request = world.request("r", steering, prompts, seed=turn, max_tokens=20)
            ours, fresh = alone(warm, request), alone(cold, request)
            # All that was computed is there, but for the last block begun.
            assert turn == 0 or ours[0].cached_tokens >= (len(request.prompt) - 20) // 16 * 16 - 16
            assert [o.token for o in ours] == [o.token for o in fresh], steering
            assert [o.logprob for o in ours] == pytest.approx([o.logprob for o in fresh], abs=1e-3)
            said = tuple(o.token for o in ours) + random_prompt(rng, 3, 20)
            prompts = {view: ids + said for view, ids in prompts.items()}


def test_to_the_end_of_the_context(world: World, rng: random.Random) -> None:
    """The last tokens of the longest possible text have candidates too."""
    engine = build(world.family, max_context=64)
    prompts = {view: ids[:9] for view, ids in world.prompts(rng).items()}
    longest = max(map(len, prompts.values()))
    outputs = alone(engine, world.request("r", explicit(), prompts, max_tokens=64 - longest))
    assert len(outputs) == 64 - longest
    with pytest.raises(InputError, match="max_tokens"):
        engine.submit(world.request("r", {"method": "cfg"}, prompts, max_tokens=65 - len(prompts[None])), Collector())


# -- requests that cannot run -----------------------------------------------------------------------------------------


def test_more_candidates_than_tokens(world: World, rng: random.Random) -> None:
    engine, prompts = build(world.family), world.prompts(rng)
    with pytest.raises(InputError) as caught:
        engine.submit(world.request("r", explicit(candidates=engine.vocabulary + 1), prompts), Collector())
    assert caught.value.field == "steering.candidates"
    assert len(alone(engine, world.request("r", explicit(candidates=engine.vocabulary), prompts))) == 8


def poisoned(world: World, where: str, engine: Engine, prompts: Mapping[Any, Sequence[int]]) -> GenerationRequest:
    """Make the weights of some source not finite; a request that needs it."""
    if where == "head":
        return world.request("bad", explicit(), prompts)
    if where == "model":
        small = next(m for key, m in engine.store.models.items() if key.base_revision.endswith("@amateur"))
        small.model.get_input_embeddings().weight.fill_(math.nan)
        return world.request("bad", {"method": "contrastive"}, prompts)
    terms = [{"source": "base", "weight": 1.0}, {"source": "only-simple", "weight": 0.5}]
    request = world.request("bad", {"method": "custom", "terms": terms}, prompts)
    base, guide = request.plan.sources
    huge = replace(guide, coefficients=(("only-simple", 1e30),))  # more than the registry admits
    return replace(request, plan=replace(request.plan, sources=(base, huge)))


@pytest.mark.parametrize("where", ["head", "model", "coefficients"])
def test_a_source_that_is_not_finite_ends_its_request_only(where: str, tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng)
    if where == "head":
        world.family.heads["score-positive"].weight[3] = math.nan
    engine = build(world.family, **ROOMY, prefix_cache=False, kv_memory=2 << 20)
    good = [
        world.request(f"good{index}", steering, world.prompts(rng))
        for index, steering in enumerate(
            world.some_steerings(rng, 8, ["mod", "genarm", "cfg", "dexperts", "proxy_tuning"])
        )
    ]
    expected = {request.request_id: numbers(alone(engine, request)) for request in good}
    bad = poisoned(world, where, engine, world.prompts(rng))
    for _ in range(2):  # the blocks that the poison leaves behind are handed out again
        together = serve(engine, [*good, bad], rng)
        assert together["bad"][-1].finish_reason == "error" and "not finite" in (together["bad"][-1].error or "")
        assert all(numbers(together[name]) == wanted for name, wanted in expected.items())
