"""A draft model changes no text, whatever it guesses; where it is the model that answers, every guess is right."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_folder import write_guided_family
from guided_requests import METHODS, ROOMY, World
from routed_folder import write_routed_family
from routed_requests import request as routed
from routed_requests import steerings as routings
from same_answers import same_answers
from seeds import fresh_seed
from tiny_engine import (
    Collector,
    alone,
    assert_idle,
    build,
    drain,
    drain_preempting,
    make_request,
    random_prompt,
    serve,
)

from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.drafting.draft_model import DraftModel
from ladle.server.engine.engine import Engine
from ladle.server.engine.grammars.grammar import Grammar, GrammarCompiler, GrammarSpec
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.thinking import Thinking, Verifier
from ladle.server.engine.schedule.draft_pace import DraftPace, GuessPace

TWIN = '[[models]]\nname = "twin"\nmodel = "base"\n\n[speculation]\nmodel = "twin"\n'
"""The base itself as the draft model."""
PREFERENCE = {"positive": 0.7, "simple": 0.3}


def _drafted_by(root: Path, table: str) -> Family:
    """The family in ``root`` with another draft model."""
    text = (root / "family.toml").read_text().partition("[speculation]")[0]
    file = root / f"family-{abs(hash(table))}.toml"
    file.write_text(f"{text}\n{table}")
    return load_family(file)


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses cost nothing, so that there are as many as there may be."""
    monkeypatch.setattr(DraftPace, "row_cost", lambda pace, rows: 0.0)
    monkeypatch.setattr(DraftPace, "step", lambda pace, rows: 1.0)
    monkeypatch.setattr(GuessPace, "forward", lambda pace, sequences: 0.0)
    monkeypatch.setattr(GuessPace, "reading", lambda pace, tokens: 0.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("drafted"), random.Random(fresh_seed()), pblora=False)


@pytest.fixture(scope="module")
def twin(world: World) -> Family:
    return _drafted_by(world.root, TWIN)


@pytest.fixture(scope="module")
def plain(world: World) -> Engine:
    return build(world.family, **ROOMY)


@pytest.fixture(scope="module")
def grammar(plain: Engine) -> Iterator[Grammar]:
    compiler = GrammarCompiler(plain.tokenizer, plain.eos)
    yield compiler.compile(GrammarSpec("regex", "(yes|no), [a-z ]{6,20}"))
    compiler.close()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


def _compare(plain: Engine, drafting: Engine, requests: Sequence[GenerationRequest], least: int = 1) -> None:
    """The same answers with guesses and without; at least so many guesses have to be right."""
    expected = serve(plain, requests)
    before = drafting.stats().accepted_tokens["model"]
    outputs = serve(drafting, requests, random.Random(fresh_seed()))
    for request in requests:
        same_answers(outputs[request.request_id], expected[request.request_id])
    assert drafting.stats().accepted_tokens["model"] - before >= least
    assert not drafting.speculation.drafts.held
    drafting.check_idle()


def _samplings(index: int) -> list[dict[str, Any]]:
    return [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.5},
        {"temperature": 0.9, "seed": index},
        {"temperature": 0.7, "top_p": 0.8, "top_k": 30, "min_p": 0.01, "seed": index},
        {"temperature": 1.0, "presence_penalty": 0.8, "repetition_penalty": 1.3, "seed": index, "logprobs": 3},
        {"temperature": 1.2, "dynatemp_range": 0.5, "seed": index, "logit_bias": ((5, 3.0), (9, -4.0))},
        {"temperature": 0.8, "min_tokens": 6, "ignore_eos": False, "seed": index},
    ]


def test_every_method(world: World, twin: Family, plain: Engine, rng: random.Random) -> None:
    """Greedy and drawn, penalised, traced, with logprobs and least lengths, in one batch, by a model that is seldom
    right and by one that often is."""
    requests = []
    for index, steering in enumerate(world.some_steerings(rng, len(METHODS))):
        if "block_length" in steering:
            continue
        own = {**steering, **({"trace": True} if rng.random() < 0.3 else {})}
        sampling = rng.choice(_samplings(index))
        requests.append(world.request(f"r{index}", own, world.prompts(rng), max_tokens=14, **sampling))
    _compare(plain, build(world.family, model_draft_tokens=4, **ROOMY), requests[::4], least=0)
    _compare(plain, build(twin, model_draft_tokens=4, draft_tokens=rng.choice([0, 2]), **ROOMY), requests)


def test_the_base_is_always_right(world: World, twin: Family, plain: Engine, rng: random.Random) -> None:
    """Guess and draw have one noise, and the same penalties, biases and truncation: one model, one token."""
    requests = [
        world.request(f"r{i}", {"method": "base"}, world.prompts(rng), max_tokens=21, **{"ignore_eos": True, **own})
        for i, own in enumerate(_samplings(rng.randrange(99))[:-1])
    ]
    drafting = build(twin, model_draft_tokens=4, **ROOMY)
    _compare(plain, drafting, requests)
    stats = drafting.stats()
    assert stats.accepted_tokens["model"] == stats.drafted_tokens["model"] > 0
    once = drafting.stats().steps
    alone(drafting, requests[0])
    # A step reads the prompt and gives a token, one of each kind goes without drafts, and the rest give five each.
    assert drafting.stats().steps - once <= 6


def test_preemption(world: World, twin: Family, rng: random.Random, plain: Engine) -> None:
    requests = [
        world.request(f"r{i}", steering, world.prompts(rng), max_tokens=24, temperature=0.8, seed=i)
        for i, steering in enumerate(world.some_steerings(rng, 6, METHODS[:6]))
        if "block_length" not in steering
    ]
    small = build(twin, model_draft_tokens=5, max_sequences=40, max_lanes=200, kv_memory=1 << 19)
    _compare(plain, small, requests)
    collector = Collector()
    for request in requests[:3]:
        small.submit(request, collector)
    drain_preempting(small, rng)
    assert small.stats().preemptions
    expected = serve(plain, requests[:3])
    for request in requests[:3]:
        same_answers(collector.outputs[request.request_id], expected[request.request_id])


def test_grammars_stops_thoughts_and_monitors(
    world: World, twin: Family, plain: Engine, grammar: Grammar, rng: random.Random
) -> None:
    drafting = build(twin, model_draft_tokens=4, **ROOMY)
    steering = {"method": "bone_soup", "preference": PREFERENCE}
    base = world.request("base", {"method": "base"}, world.prompts(rng), max_tokens=24, seed=3)
    text = "".join(output.text for output in alone(plain, base))
    view = PromptView("doubt", "Is it done?")
    thinking = Thinking((5,), random_prompt(rng, 1, 2), 9, random_prompt(rng, 0, 2), True, Verifier(3, 0.5, view))
    monitor = {"value": "score-positive", "above": rng.uniform(-0.2, 0.5), "for": 2, "hold": 3}
    requests = [
        base,
        replace(base, request_id="stopped", sampling=replace(base.sampling, stop=(text[len(text) // 2 :][:3],))),
        replace(world.request("grammar", steering, world.prompts(rng), max_tokens=24), grammar=grammar),
        replace(base, request_id="thought", thinking=thinking, views={**base.views, view: random_prompt(rng, 3, 20)}),
        world.request("watched", {"method": "base", "monitor": monitor}, world.prompts(rng), max_tokens=24),
        *(replace(base, request_id=f"n{i}", sampling=replace(base.sampling, seed=100 + i)) for i in range(3)),
        *(replace(base, request_id=f"short{n}", sampling=replace(base.sampling, max_tokens=n)) for n in (1, 2)),
    ]
    _compare(plain, drafting, requests)


def test_searches(world: World, twin: Family, plain: Engine, rng: random.Random) -> None:
    requests = []
    for index, by in enumerate(("explicit", "implicit", "likelihood")):
        search = {"by": by, "until": rng.randint(2, 4), "draws": 3, "beam": 2}
        steering = {"method": "bone_soup", "preference": PREFERENCE, "search": search}
        requests.append(world.request(f"r{index}", steering, world.prompts(rng), max_tokens=12, seed=index))
    _compare(plain, build(twin, model_draft_tokens=3, **ROOMY), requests)


def test_routed_requests(tmp_path: Path, rng: random.Random) -> None:
    family = _drafted_by(write_routed_family(tmp_path, "llama", rng.randrange(1000), defer=True), TWIN)
    requests = [
        routed(family, f"r{index}", steering, random_prompt(rng, 2, 30), max_tokens=14, temperature=0.9, seed=index)
        for index, steering in enumerate(rng.sample(routings(rng), 7))
    ]
    options = {
        "expert_schedule": rng.choice(["eager", "lazy"]),
        "max_sequences": 40,
        "max_lanes": 200,
        "kv_memory": 32 << 20,
    }
    _compare(build(family, **options), build(family, model_draft_tokens=4, **options), requests)


def test_plans_that_change_and_requests_that_leave(world: World, twin: Family, rng: random.Random) -> None:
    """An answer whose plan changes on the way is the one that it is without guesses; who leaves, leaves nothing."""
    prompts = world.prompts(rng)
    parts = [{"until": 7, "method": "base"}, {"method": "bone_soup", "preference": PREFERENCE}]
    request = world.request("changing", {"schedule": parts}, prompts, max_tokens=24, seed=5)
    expected = alone(build(world.family, **ROOMY), request)
    drafting = build(twin, model_draft_tokens=4, **ROOMY)
    collector = Collector()
    others = [world.request(f"r{i}", {"method": "base"}, prompts, max_tokens=60, seed=i) for i in range(6)]
    for one in (request, *others):
        drafting.submit(one, collector)
    drain(drafting, until=lambda: drafting.stats().drafted_tokens["model"] > rng.randint(1, 40))
    assert drafting.speculation.drafts.held
    for index in range(4):
        drafting.cancel(f"r{index}")
    other = world.request("r5", {"method": "cfg"}, prompts)
    steer(drafting, [replace(others[5], plan=other.plan, views=other.views)])
    drain(drafting)
    assert_idle(drafting)
    same_answers(collector.outputs["changing"], expected)
    assert not drafting.speculation.drafts.held


def test_a_short_window_is_read_anew(world: World, plain: Engine, rng: random.Random) -> None:
    """Texts grow beyond the window again and again."""
    requests = [
        world.request(f"r{i}", {"method": "base"}, world.prompts(rng), max_tokens=50, temperature=1.0, seed=i)
        for i in range(3)
    ]
    _compare(plain, build(_drafted_by(world.root, TWIN + "window = 16\n"), model_draft_tokens=16, **ROOMY), requests)


def test_a_model_that_fails_is_left_alone(
    world: World, plain: Engine, rng: random.Random, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = world.request("one", {"method": "base"}, world.prompts(rng), max_tokens=20)
    drafting, calls = build(world.family, model_draft_tokens=4, **ROOMY), []

    def fail(model: DraftModel, *rest: Any) -> None:
        calls.append(rest)
        raise RuntimeError("broken")

    monkeypatch.setattr(DraftModel, "guess", fail)
    same_answers(alone(drafting, request), alone(plain, request))
    assert len(calls) == 1 and "the draft model failed" in caplog.text
    drafting.check_idle()


def test_scores_that_are_not_numbers(world: World, plain: Engine, rng: random.Random) -> None:
    drafting = build(_drafted_by(world.root, '[speculation]\nmodel = "small"'), model_draft_tokens=4, **ROOMY)
    for parameter in drafting.models.whole("small").model.parameters():
        parameter.data.fill_(torch.nan)
    requests = [
        world.request(f"r{i}", {"method": "base"}, world.prompts(rng), max_tokens=20, temperature=i % 2, seed=i)
        for i in range(4)
    ]
    _compare(plain, drafting, requests, least=0)


def test_idle_rows_would_be_found(world: World, twin: Family, rng: random.Random) -> None:
    drafting, collector = build(twin, model_draft_tokens=4, **ROOMY), Collector()
    drafting.submit(make_request("one", random_prompt(rng, 5, 20), max_tokens=40, ignore_eos=True), collector)
    drain(drafting, until=lambda: drafting.stats().drafted_tokens["model"] > 0)
    with pytest.raises(AssertionError, match="1 rows of the draft model"):
        drafting.check_idle()
    drain(drafting)
    drafting.check_idle()


def test_families_without_one_are_refused(tmp_path: Path, world: World) -> None:
    none = _drafted_by(world.root, "")
    with pytest.raises(InputError, match=r"speculate: the family names no draft model; write \[speculation\]"):
        build(none, model_draft_tokens=4)
    with pytest.raises(FamilyError, match=r"speculation.model: 'big' is no entry of \[\[models\]\]; known: small"):
        _drafted_by(world.root, '[speculation]\nmodel = "big"')
    with pytest.raises(FamilyError, match=r"speculation.window: 500 tokens and 16 guesses are more than the 512"):
        build(_drafted_by(world.root, '[speculation]\nmodel = "small"\nwindow = 500'), model_draft_tokens=4)
    for window in ("15", "true", '"many"'):
        with pytest.raises(FamilyError, match=r"speculation.window"):
            _drafted_by(world.root, f'[speculation]\nmodel = "small"\nwindow = {window}')


def test_another_vocabulary_is_refused(tmp_path: Path, rng: random.Random) -> None:
    root = write_guided_family(tmp_path, "llama", rng.randrange(1000), pblora=False)
    file = root / "small" / "tokenizer.json"
    file.write_text(file.read_text().replace('"a":', '"an other":', 1))
    with pytest.raises(FamilyError, match="small"):
        load_family(root)
