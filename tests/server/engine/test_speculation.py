"""Drafted tokens change no text: every request gives what it gives without them, in fewer steps."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from guided_requests import METHODS, ROOMY, World
from routed_folder import write_routed_family
from routed_requests import request as routed
from routed_requests import steerings as routings
from same_answers import same_answers
from seeds import fresh_seed
from tiny_engine import alone, build, random_prompt, serve

from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.schedule import drafts
from ladle.server.engine.schedule.draft_pace import DraftPace


class Foreseen:
    """An index that knows what will come, mostly: in place of the n-grams of text that random weights never repeat."""

    known: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    rng: ClassVar[random.Random] = random.Random()

    def __init__(self, prompt: Iterable[int]) -> None:
        self._answer = self.known.get(tuple(prompt), [])
        self._seen = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self._seen += len(tokens)

    def guess(self, most: int) -> tuple[int, ...]:
        coming = self._answer[self._seen : self._seen + self.rng.randint(0, most)]
        return tuple(token if self.rng.random() < 0.8 else 3 + token % 7 for token in coming)


@pytest.fixture
def foreseen(monkeypatch: pytest.MonkeyPatch) -> type[Foreseen]:
    """Guesses of ``Foreseen``, each of which is checked whatever that costs."""
    Foreseen.known, Foreseen.rng = {}, random.Random(fresh_seed())
    monkeypatch.setattr(drafts, "NgramIndex", Foreseen)
    monkeypatch.setattr(DraftPace, "row_cost", lambda pace, rows: 0.0)
    return Foreseen


def _compare(plain: Engine, drafting: Engine, requests: list[GenerationRequest], foreseen: type[Foreseen]) -> None:
    """The same tokens, and what is said of them, with drafts and without; some of the drafts have to be right."""
    expected = serve(plain, requests)
    foreseen.known = {
        r.prompt: [output.token for output in expected[r.request_id] if output.token >= 0] for r in requests
    }
    before = drafting.stats()
    outputs = serve(drafting, requests, random.Random(fresh_seed()))
    after = drafting.stats()
    for request in requests:
        same_answers(outputs[request.request_id], expected[request.request_id])
    accepted = after.accepted_tokens["ngram"] - before.accepted_tokens["ngram"]
    assert after.drafted_tokens["ngram"] - before.drafted_tokens["ngram"] > accepted > 0
    assert after.drafted_tokens["model"] == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), random.Random(fresh_seed()), pblora=False)


def test_guided_requests(world: World, foreseen: type[Foreseen]) -> None:
    """All methods that guide, greedy and drawn, penalised, traced, with logprobs and least lengths, in one batch."""
    rng = random.Random(fresh_seed())
    requests = []
    for index, steering in enumerate(world.some_steerings(rng, 18)):
        if "block_length" in steering:
            continue
        sampling = rng.choice([
            {"temperature": 0.0}, {"temperature": 0.9, "seed": index}, {"temperature": 0.7, "top_p": 0.9, "seed": 3},
            {"temperature": 1.0, "presence_penalty": 0.8, "repetition_penalty": 1.3, "seed": index, "logprobs": 3},
            {"temperature": 0.8, "min_tokens": 6, "ignore_eos": False, "seed": 5},
        ])  # fmt: skip
        own = {**steering, **({"trace": True} if rng.random() < 0.3 else {})}
        requests.append(world.request(f"r{index}", own, world.prompts(rng), max_tokens=14, **sampling))
    _compare(build(world.family, **ROOMY), build(world.family, draft_tokens=4, **ROOMY), requests, foreseen)


def test_blocks_and_preemption(world: World, foreseen: type[Foreseen]) -> None:
    """The pool is too small for all of them, so that drafts wait, and who is set back is drafted for again."""
    rng = random.Random(fresh_seed())
    requests = [
        world.request(f"r{i}", steering, world.prompts(rng), max_tokens=40, temperature=0.8, seed=i)
        for i, steering in enumerate(world.some_steerings(rng, len(METHODS)))
        if "block_length" not in steering
    ]
    small = build(world.family, draft_tokens=5, max_sequences=40, max_lanes=200, kv_memory=1 << 19)
    _compare(build(world.family, **ROOMY), small, requests, foreseen)
    assert small.stats().preemptions


def test_answers_of_several_sequences(world: World, foreseen: type[Foreseen]) -> None:
    """Blocks that are drawn, valued and chosen, each a sequence that goes on from the text so far."""
    rng = random.Random(fresh_seed())
    steering = {"method": "cd", "preference": {name: 1.0 for name in world.objectives}, "block_length": 4}
    request = world.request("blocks", {**steering, "candidates": 3}, world.prompts(rng), max_tokens=12, seed=4)
    expected = alone(build(world.family, **ROOMY), request)
    foreseen.known = {request.prompt: [output.token for output in expected]}
    same_answers(alone(build(world.family, draft_tokens=3, **ROOMY), request), expected)


def test_answers_that_are_watched(world: World, foreseen: type[Foreseen]) -> None:
    """A monitor values every token of a draft, and ends the answer at the one that it ends without drafts."""
    rng = random.Random(fresh_seed())
    requests = []
    # Those that are never ended draft enough that some of it is right and some wrong.
    for index, above in enumerate([1e9, 1e9, 1e9, 1e9, -0.2, 0.0, 0.1, 0.3, 0.6]):
        monitor = {"value": "score-positive", "above": above, "for": 1 + index % 3, "hold": 3}
        steering = {"method": "base", "monitor": monitor}
        requests.append(world.request(f"r{index}", steering, world.prompts(rng), max_tokens=24, seed=index))
    plain, drafting = build(world.family, **ROOMY), build(world.family, draft_tokens=4, **ROOMY)
    _compare(plain, drafting, requests, foreseen)
    expected, outputs = serve(plain, requests), serve(drafting, requests)
    for request in requests:
        assert [o.tripped for o in outputs[request.request_id]] == [o.tripped for o in expected[request.request_id]]


@pytest.mark.parametrize("schedule", ["eager", "lazy"])
def test_routed_requests(schedule: str, tmp_path: Path, foreseen: type[Foreseen]) -> None:
    rng = random.Random(fresh_seed())
    family = load_family(write_routed_family(tmp_path, "llama", rng.randrange(1000), defer=True))
    requests = [
        routed(family, f"r{index}", steering, random_prompt(rng, 2, 30), max_tokens=14, temperature=0.5, seed=index)
        for index, steering in enumerate(routings(rng))
    ]
    options = {"expert_schedule": schedule, "max_sequences": 40, "max_lanes": 200, "kv_memory": 32 << 20}
    _compare(build(family, **options), build(family, draft_tokens=4, **options), requests, foreseen)


def test_the_last_token_is_the_last(world: World, foreseen: type[Foreseen]) -> None:
    """Nothing is drafted beyond max_tokens; a stop string in the middle of a draft ends the answer there."""
    rng = random.Random(fresh_seed())
    plain, drafting = build(world.family, **ROOMY), build(world.family, draft_tokens=8, **ROOMY)
    request = world.request("long", {"method": "base"}, world.prompts(rng), max_tokens=20)
    text = "".join(output.text for output in alone(plain, request))
    requests = [
        replace(request, request_id=f"r{n}", sampling=replace(request.sampling, max_tokens=n)) for n in (1, 2, 20)
    ]
    requests.append(
        replace(request, request_id="stopped", sampling=replace(request.sampling, stop=(text[len(text) // 2 :][:3],)))
    )
    for one in requests:
        expected = alone(plain, one)
        foreseen.known = {one.prompt: [output.token for output in alone(plain, request)]}
        same_answers(alone(drafting, one), expected)
