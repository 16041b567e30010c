"""Scores of whole answers: against the float64 reference, beside answers without them, and nothing left behind."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_folder import KINDS
from guided_requests import World
from reference_decoder import ReferenceDecoder
from reference_text import Text, View, view_of, with_reference, without_preference
from reference_weights import ReferenceWeights
from routed_folder import write_routed_family
from routed_requests import request as routed_request
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, random_prompt, serve

from ladle.merging.family.family import load_family
from ladle.server.engine.requests.request import StepOutput
from ladle.server.live_answers import token_cost

PREFERENCE = {"positive": 0.7, "simple": 0.3}


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


def _explicit(reference: ReferenceDecoder, prompts: Mapping[View, Sequence[int]], tokens: Sequence[int]) -> float:
    text = Text(reference.weights, prompts, tokens[:-1], len(tokens) - 1)
    parts = reference.chosen("explicit", {"preference": PREFERENCE})
    return float(reference.worth(text, torch.tensor([[tokens[-1]]]), parts, merged=False))


def _implicit(reference: ReferenceDecoder, prompts: Mapping[View, Sequence[int]], tokens: Sequence[int]) -> float:
    text = Text(reference.weights, prompts, tokens, 0)
    ids = torch.tensor(tokens)[:, None]
    total = 0.0
    kept = [entry for entry in reference.manifest["values"] if without_preference(entry) and with_reference(entry)]
    for entry, share in reference.chosen("implicit", {"preference": PREFERENCE}, lambda entry: entry in kept):
        for names, sign in (({entry["name"]: 1.0}, 1), ({}, -1)):
            rows = text.logprobs(names, entry.get("base", ""), view_of(entry))[: len(tokens)]
            total += share * sign * float(rows.gather(1, ids).sum())
    return total


def _tokens(outputs: Sequence[StepOutput]) -> list[int]:
    return [output.token for output in outputs]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_reference_and_answers_stay_as_they_are(tmp_path: Path, rng: random.Random, kind: str) -> None:
    world = World(tmp_path, rng, "llama", kind=kind)
    engine = build(world.family, dtype="float64", max_lanes=60, max_batch_tokens=128)
    prompts = world.prompts(rng, longest=60)
    steered: list[dict[str, Any]] = [
        {"method": "bone_soup"}, {"method": "mage", "value": "explicit"}, {"method": "mod"}, {"method": "base"}
    ]  # fmt: skip
    requests, plain, asked = [], [], {}
    for index, by in enumerate(["explicit", "implicit", "likelihood"] * 2):
        steering = {**rng.choice(steered), "preference": PREFERENCE}
        options = {"max_tokens": rng.randint(1, 20), "seed": rng.getrandbits(60)}
        per = "token" if index > 2 and by != "explicit" else "answer"
        asked[f"r{index}"] = (by, per)
        ranked = {**steering, "rank": {"by": by, "per": per}}
        requests.append(world.request(f"r{index}", ranked, prompts, **options))
        plain.append(world.request(f"r{index}", steering, prompts, **options))
    outputs = serve(engine, requests, rng)
    without = serve(engine, plain)
    for name, (by, per) in asked.items():
        tokens, last = _tokens(outputs[name]), outputs[name][-1]
        assert tokens == _tokens(without[name])
        assert last.text == without[name][-1].text and last.finish_reason == without[name][-1].finish_reason
        assert [output.score for output in outputs[name][:-1]] == [None] * (len(tokens) - 1)
        if by == "likelihood":
            wanted = sum(output.logprob for output in without[name])
        else:
            wanted = (_explicit if by == "explicit" else _implicit)(world.reference, prompts, tokens)
        assert last.score is not None and last.score.by == by
        assert last.score.value == pytest.approx(wanted / (len(tokens) if per == "token" else 1), abs=1e-9)
        # The same text, judged without being written, is worth the same.
    given = [
        replace(request, answer=tuple(_tokens(outputs[request.request_id])), sampling=replace(request.sampling,
                max_tokens=0))
        for request in requests
        if request.plan.scorer is None or request.plan.ranking
    ]  # fmt: skip
    for name, (only,) in serve(engine, given, rng).items():
        assert only.score is not None and only.token == -1
        assert only.score.value == pytest.approx(outputs[name][-1].score.value, abs=1e-9)  # type: ignore[union-attr]


def _asked(reference: ReferenceDecoder, prompt: Sequence[int], tokens: Sequence[int], view: Sequence[int]) -> float:
    """Log-odds of the last but one token of ``view`` against the last behind the others."""
    *question, yes, no = view
    said = tokens[:-1] if tokens and tokens[-1] == 2 else tokens  # what ended the answer is no part of it
    logits, _ = reference.weights.run("", {}, [[*prompt, *said, *question]])
    return float(logits[0, -1, yes] - logits[0, -1, no])


def test_questions_and_the_router_equal_the_reference(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path / "guided", rng, "llama")
    engine = build(world.family, dtype="float64", max_lanes=60, max_batch_tokens=128)
    steered: list[dict[str, Any]] = [
        {"method": "bone_soup"}, {"method": "mage", "value": "explicit"}, {"method": "vas"}, {"method": "mod"}
    ]  # fmt: skip
    prompts: dict[Any, Any] = {**world.prompts(rng, longest=60), ("question", "Kind?"): random_prompt(rng, 3, 20)}
    requests, plain = [], []
    for index, steering in enumerate(steered):
        options = {"max_tokens": rng.randint(1, 20), "seed": index, "ignore_eos": False, "logit_bias": ((2, 4.0),)}
        own = {**steering, "preference": PREFERENCE}
        requests.append(world.request(f"r{index}", {**own, "rank": {"by": {"ask": "Kind?"}}}, prompts, **options))
        plain.append(world.request(f"r{index}", own, prompts, **options))
    outputs, without = serve(engine, requests, rng), serve(engine, plain)
    given = []
    for request, bare in zip(requests, plain, strict=True):
        name = request.request_id
        (question,) = (ids for view, ids in request.views.items() if view.kind == "question")
        tokens, last = _tokens(outputs[name]), outputs[name][-1]
        assert tokens == _tokens(without[name]) and last.score is not None and last.score.by == "ask"
        assert last.score.value == pytest.approx(_asked(world.reference, prompts[None], tokens, question), abs=1e-9)
        assert last.asked == 2 * (len(question) - 1) and [part.name for part, _ in last.score.parts] == ["base"]
        assert token_cost(request.plan) == token_cost(bare.plan) + 1, "the base reads the answer, too"
        assert request.prompt_cost == bare.prompt_cost + len(prompts[None])
        sampling = replace(request.sampling, max_tokens=0)
        given.append(replace(request, answer=tuple(tokens), sampling=sampling))
    for name, (only,) in serve(engine, given, rng).items():
        assert only.score is not None and only.asked == outputs[name][-1].asked
        assert only.score.value == pytest.approx(outputs[name][-1].score.value, abs=1e-9)  # type: ignore[union-attr]

    root = write_routed_family(tmp_path / "routed", seed=rng.randrange(1000))
    family, weights = load_family(root), ReferenceWeights(root)
    engine = build(family, dtype="float64", max_lanes=60, max_batch_tokens=128)
    prompt = random_prompt(rng, 3, 30)
    cases = {
        "merged": ({"method": "bone_soup", "preference": PREFERENCE}, {}),
        "routed": ({"method": "fusion_route", "complement": 0.0}, {}),
        "below": ({"method": "fusion_route", "coefficients": {"only-simple": 0.7}}, {"only-simple": 0.7}),
    }
    per = rng.choice(["answer", "token"])
    asked = [
        routed_request(family, name, {**steering, "rank": {"by": "router", "per": per}}, prompt)
        for name, (steering, _) in cases.items()
    ]
    for name, own in serve(engine, asked, rng).items():
        tokens = _tokens(own)
        logits, _ = weights.run("", {**cases[name][1], "router": 1.0}, [[*prompt, *tokens]])
        said = logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1).gather(1, torch.tensor(tokens)[:, None]).sum()
        wanted = float(said) / (len(tokens) if per == "token" else 1)
        assert own[-1].score is not None and own[-1].score.value == pytest.approx(wanted, abs=1e-9)
        (source, value) = own[-1].score.parts[0]
        assert source.name == "router" and value == pytest.approx(float(said), abs=1e-9)
    engine.check_idle()


def test_the_second_word_of_a_question_finds_the_state_of_the_first(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama")
    engine = build(world.family, max_lanes=60)
    prompts: dict[Any, Any] = {None: random_prompt(rng, 100, 101), ("question", "Kind?"): random_prompt(rng, 40, 41)}
    plain = world.request("plain", {"method": "base"}, prompts, max_tokens=3, seed=1)
    asked = world.request("asked", {"method": "base", "rank": {"by": {"ask": "Kind?"}}}, prompts, max_tokens=3, seed=1)
    for request in (plain, asked):
        serve(engine, [request])
    assert asked.work.tokens <= 16 + 3 + 40 + 2 * 16, "the prompt is there, and so is the question for the second word"
    engine.check_idle()


def test_what_was_computed_of_the_prompt_is_reused(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama")
    engine = build(world.family, max_lanes=60)
    prompts = {view: (*ids, *range(3, 67)) for view, ids in world.prompts(rng).items()}
    work = []
    for name in ("first", "second"):
        steering = {"method": "base", "preference": PREFERENCE, "rank": {"by": "implicit"}}
        request = world.request(name, steering, prompts, max_tokens=3, seed=rng.getrandbits(60))
        serve(engine, [request])
        work.append(request.work.tokens)
    assert work[1] < work[0] / 2


def test_cancelled_and_failed_ones_leave_nothing_behind(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama")
    engine = build(world.family, kv_memory=1 << 18)
    collector = Collector()
    for index in range(6):
        by = ("explicit", "implicit", {"ask": "Kind?"})[index % 3]
        steering = {"method": "bone_soup", "preference": PREFERENCE, "rank": {"by": by}}
        prompts: dict[Any, Any] = {**world.prompts(rng), ("question", "Kind?"): random_prompt(rng, 3, 20)}
        request = world.request(f"r{index}", steering, prompts, max_tokens=rng.randint(2, 30), seed=index)
        engine.submit(request, collector)
    steps = rng.randint(1, 30)
    drain(engine, until=lambda: engine.stats().steps >= steps)
    gone = {name for name in ("r1", "r2") if not collector.finished(name)}
    for name in gone:
        engine.cancel(name)
    drain(engine)
    assert_idle(engine)
    engine.check_idle()
    for index in range(6):
        assert collector.finished(f"r{index}") == (f"r{index}" not in gone)
    # A value that is not finite ends its request with an error, and no other one.
    for head in world.family.heads.values():
        head.weight.fill_(torch.nan)
    good = world.request("good", {"method": "base"}, world.prompts(rng))
    steering = {"method": "base", "preference": PREFERENCE, "rank": {"by": "explicit"}}
    outputs = serve(engine, [good, world.request("bad", steering, world.prompts(rng))])
    assert outputs["bad"][-1].finish_reason == "error" and outputs["good"][-1].finish_reason == "length"
    engine.check_idle()
