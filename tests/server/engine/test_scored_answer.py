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
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, serve

from ladle.server.engine.requests.request import StepOutput

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
        by = ("explicit", "implicit")[index % 2]
        steering = {"method": "bone_soup", "preference": PREFERENCE, "rank": {"by": by}}
        request = world.request(f"r{index}", steering, world.prompts(rng), max_tokens=rng.randint(2, 30), seed=index)
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
