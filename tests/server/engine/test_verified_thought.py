"""Thoughts with a verifier: where the base is asked and what it says against the reference, and that a thought which is
ended is one whose budget ends there."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_requests import World
from routed_folder import write_routed_family
from routed_requests import request as routed
from routed_requests import steerings as routings
from seeds import continued_seed, fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, drain_preempting, random_prompt, serve
from watched_text import bound

from ladle.guidance.plan import PromptView
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.live_steering import steer
from ladle.server.engine.requests import sequence as sequences
from ladle.server.engine.requests.request import CheckedThought, GenerationRequest, StepOutput
from ladle.server.engine.requests.thinking import Thinking, Verifier
from ladle.server.live_answers import cost_of

DOUBT = PromptView("doubt", "Is it done?")
PREFERENCE = {"positive": 0.7, "simple": 0.3}
NEVER, ALWAYS = 1.0, 0.0
METHODS: list[dict[str, Any]] = [
    {"method": "base"},
    {"method": "bone_soup", "preference": PREFERENCE},
    {"method": "mage", "value": "explicit", "candidates": 5, "preference": PREFERENCE},
    {"method": "mod", "preference": PREFERENCE},
    {"method": "cfg"},
    {"method": "custom", "terms": [{"source": "base", "weight": 1.0}, {"source": "small", "weight": 0.5}]},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("verified"), random.Random(fresh_seed()))


@pytest.fixture(scope="module")
def engine(world: World) -> Engine:
    return build(world.family, max_lanes=120, max_batch_tokens=96, kv_memory=16 << 20, draft_tokens=3)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


def verified(request: GenerationRequest, rng: random.Random, above: float = NEVER, every: int = 3) -> GenerationRequest:
    """``request`` with a thought that is open, and a question about it."""
    asked = random_prompt(rng, 3, 20)
    thinking = Thinking(
        (5,), random_prompt(rng, 1, 2), None, random_prompt(rng, 0, 2), True, Verifier(every, above, DOUBT)
    )
    return replace(request, thinking=thinking, views={**request.views, DOUBT: asked})


def ended(request: GenerationRequest, above: float) -> GenerationRequest:
    thinking = request.thinking
    assert thinking is not None and thinking.verifier is not None
    return replace(request, thinking=replace(thinking, verifier=replace(thinking.verifier, above=above)))


def budgeted(request: GenerationRequest, budget: int | None) -> GenerationRequest:
    assert request.thinking is not None
    return replace(request, thinking=replace(request.thinking, budget=budget, verifier=None))


def tokens_of(outputs: Sequence[StepOutput]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    return [output.token for output in outputs]


def places(engine: Engine, request: GenerationRequest, plain: Sequence[StepOutput]) -> list[int]:
    """After how many tokens the base is asked, all of them the thought's: behind a mark, at least ``every`` apart."""
    assert request.thinking is not None and request.thinking.verifier is not None
    found, last, close, says = [], 0, request.thinking.close, False
    text = tokens_of(plain)
    for count in range(1, len(text)):
        if tuple(text[count - len(close) : count]) == close:
            break
        piece = engine.tokenizer.decode([text[count - 1]])
        says = says or any(character.isalnum() for character in piece)
        if not says or piece not in (".", "?", "!", "\n"):
            continue
        says = False
        if count - last >= request.thinking.verifier.every and text[count - 1] != close[0]:
            found.append(count)
            last = count
    return found


def marks(engine: Engine) -> tuple[tuple[int, float], ...]:
    """A bias to the ends of sentences; without other tokens in whose text one is, the rule is the one above."""
    pieces = [engine.tokenizer.decode([token]) for token in range(engine.vocabulary)]
    wanted = {token for token, piece in enumerate(pieces) if piece in (".", "?", "!", "\n")}
    others = {token for token, piece in enumerate(pieces) if set(piece) & set(".?!\n\"')]\u2026\u3002") or piece == " "}
    return (*((token, 6.0) for token in wanted), *((token, -100.0) for token in others - wanted))


def _made(world: World, engine: Engine, rng: random.Random, count: int) -> list[GenerationRequest]:
    requests = []
    for index in range(count):
        options = {
            "temperature": rng.choice([0.0, 1.0]),
            "seed": rng.getrandbits(60),
            "logit_bias": marks(engine),
        }
        steering = METHODS[index % len(METHODS)]
        request = world.request(f"r{index}", steering, world.prompts(rng), max_tokens=28, **options)
        requests.append(verified(request, rng, every=rng.randint(1, 6)))
    return requests


@torch.inference_mode()
def likely(world: World, request: GenerationRequest, said: Sequence[int]) -> float:
    *asked, yes, no = request.views[DOUBT]
    scores = world.reference.scores({"method": "base"}, {None: (*request.prompt, *said, *asked)})[0]
    return float(torch.sigmoid((scores[yes] - scores[no]).double()))


@pytest.mark.parametrize("preempted", [False, True])
def test_thoughts_end_where_the_reference_says(
    world: World, engine: Engine, rng: random.Random, preempted: bool
) -> None:
    """Under every kind of method, with drafts and where sequences are preempted; a thought that is never enough changes
    nothing."""
    requests = _made(world, engine, rng, len(METHODS))
    plain = serve(engine, [budgeted(request, None) for request in requests])
    asked, expected = [], {}
    for request in requests:
        counts = places(engine, request, plain[request.request_id])
        said = [likely(world, request, tokens_of(plain[request.request_id])[:count]) for count in counts]
        above = min(NEVER, max(ALWAYS, bound(said, rng))) if said else NEVER
        cut = next((index for index, chance in enumerate(said) if chance > above), None)
        expected[request.request_id] = (counts, said, cut)
        asked.append(ended(request, above))
    shorter = serve(
        engine,
        [
            budgeted(request, None if cut is None else counts[cut])
            for request in requests
            for counts, _, cut in [expected[request.request_id]]
        ],
    )
    collector = Collector()
    for request in asked:
        engine.submit(request, collector)
    if preempted:
        drain_preempting(engine, rng)
    else:
        drain(engine)
    assert_idle(engine)
    engine.check_idle()
    assert any(counts for counts, _, _ in expected.values())
    for name, (counts, said, cut) in expected.items():
        own, other = collector.outputs[name], shorter[name]
        assert [(o.token, o.text, o.reasoning, o.finish_reason) for o in own] == [
            (o.token, o.text, o.reasoning, o.finish_reason) for o in other
        ]
        assert [o.reasoning_tokens for o in own] == [o.reasoning_tokens for o in other]
        assert [o.logprob for o in own] == pytest.approx([o.logprob for o in other], abs=1e-4)
        checks = [o.checked for o in own if o.checked is not None]
        until = len(counts) if cut is None else cut + 1
        assert [check.token for check in checks] == counts[:until]
        assert [check.likely for check in checks] == pytest.approx(said[:until], abs=1e-4)
        assert [check.ends for check in checks] == [index == cut for index in range(until)]
        assert all(o.checked is None or o.checked.token == o.completion_tokens for o in own)


def test_always_yes_ends_at_the_first_check_and_never_changes_nothing(
    world: World, engine: Engine, rng: random.Random
) -> None:
    request = verified(
        world.request("r", METHODS[1], world.prompts(rng), max_tokens=24, seed=3, logit_bias=marks(engine)), rng
    )
    plain = alone(engine, budgeted(request, None))
    counts = places(engine, request, plain)
    never = alone(engine, ended(request, NEVER))
    assert [replace(o, queued_s=None, checked=None, asked=0) for o in never] == [
        replace(o, queued_s=None, cached_tokens=never[0].cached_tokens) for o in plain
    ]
    assert sum(o.asked for o in never) == len(counts) * 2 * (len(request.views[DOUBT]) - 1) + (counts or [0])[-1]
    always = alone(engine, ended(request, ALWAYS))
    first = counts[0] if counts else None
    assert tokens_of(always) == tokens_of(alone(engine, budgeted(request, first)))
    written = sum(cost_of(o, 1) - o.asked for o in always)
    assert written >= len(always), "what was written behind the check is paid for"


def test_a_grammar_watchers_ranks_schedules_and_live_changes(world: World, engine: Engine, rng: random.Random) -> None:
    """What else acts on an answer acts on one whose thought was ended as on one whose budget ended there."""
    options = {"max_tokens": 24, "seed": rng.getrandbits(40), "logit_bias": marks(engine)}
    prompts = world.prompts(rng)
    schedule = [{"until": rng.randint(2, 12), "method": "base"}, {"method": "bone_soup", "preference": PREFERENCE}]
    ranked = {"method": "bone_soup", "preference": PREFERENCE, "rank": {"by": "explicit"}}
    watched = {"method": "base", "monitor": {"value": "score-positive", "above": 1e9, "hold": 3}, "trace": True}
    penalised = {"method": "base"}
    for steering, more in (
        ({"schedule": schedule}, {}),
        (ranked, {}),
        (watched, {}),
        (penalised, {"presence_penalty": 1.5}),
    ):
        request = verified(
            world.request("r", steering, prompts, **options, **more), rng, ALWAYS, every=rng.randint(1, 4)
        )
        plain = alone(engine, budgeted(request, None))
        counts = places(engine, request, plain)
        own = alone(engine, request)
        other = alone(engine, budgeted(request, counts[0] if counts else None))
        assert tokens_of(own) == tokens_of(other)
        assert [o.logprob for o in own] == pytest.approx([o.logprob for o in other], abs=1e-4)
        assert [o.began for o in own] == [o.began for o in other]
        if own[-1].score is not None and other[-1].score is not None:
            assert own[-1].score.value == pytest.approx(other[-1].score.value, abs=1e-4)
        if own[0].trace is not None and own[0].trace.monitors is not None:
            said, known = ([o.trace.monitors["score-positive"] for o in one if o.trace] for one in (own, other))
            assert said == pytest.approx(known, abs=1e-4)
    engine.check_idle()


def test_a_live_change_stands_whatever_is_taken_back(world: World, engine: Engine, rng: random.Random) -> None:
    """What is written after the thought was ended is the other plan's, whenever that was asked for."""
    options = {"max_tokens": 30, "seed": rng.getrandbits(40), "logit_bias": marks(engine)}
    request = verified(world.request("r", METHODS[0], world.prompts(rng), **options), rng, ALWAYS, every=1)
    other = world.request("r", METHODS[1], {**world.prompts(rng), None: request.prompt}, **options)
    thinking = request.thinking
    assert thinking is not None
    for wait in range(9):
        collector = Collector()
        engine.submit(request, collector)
        for _ in range(wait):
            engine.step()
        steer(engine, [replace(request, plan=other.plan)])
        drain(engine)
        engine.check_idle()
        own = collector.outputs["r"]
        assert own[-1].finish_reason == "length"
        (began,) = (index for index, output in enumerate(own) if output.began is other.plan)
        forced = len(thinking.message) + len(thinking.close)
        ends = [output.checked.token + forced for output in own if output.checked and output.checked.ends]
        tokens, start = tokens_of(own), max([began, *ends])
        if ends and start < 30:
            sampling = replace(
                request.sampling, max_tokens=30 - start, seed=continued_seed(request.sampling.seed, start)
            )
            fresh = replace(other, prompt=(*request.prompt, *tokens[:start]), sampling=sampling)
            assert tokens[start:] == tokens_of(alone(engine, fresh)), (wait, began, ends)


def test_a_change_of_plan_keeps_where_the_thought_ends(world: World, rng: random.Random) -> None:
    """Whoever asks for it has the request as it was made, before anything was found out about its thought."""
    request = verified(world.request("r", METHODS[0], world.prompts(rng)), rng)
    sequence = sequences.Sequence(budgeted(request, 3), [])
    other = world.request("r", METHODS[1], {**world.prompts(rng), None: request.prompt})
    sequence.follow(sequences.Change(0, replace(request, plan=other.plan), []))
    assert sequence.request.plan is other.plan and sequence.request.thinking == budgeted(request, 3).thinking
    sequence.output.extend([7, 7, 7])
    assert sequence.thought is not None and sequence.thought.forced is not None


def test_cancelled_and_failed_ones_leave_nothing_behind(world: World, rng: random.Random) -> None:
    engine = build(world.family, max_lanes=60, kv_memory=1 << 19)
    for steps in (1, 3, 5, 8, 13):
        collector = Collector()
        for request in _made(world, engine, rng, 4):
            own = ended(request, rng.choice([ALWAYS, NEVER, 0.5]))
            engine.submit(replace(own, sampling=replace(own.sampling, max_tokens=14)), collector)
        for _ in range(steps):
            engine.step()
        for index in range(3):
            engine.cancel(f"r{index}")
        drain(engine)
        assert_idle(engine)
        engine.check_idle()
        assert collector.finished("r3")


@pytest.mark.parametrize("expert_schedule", ["auto", "lazy"])
def test_routed_thoughts_are_verified(tmp_path: Path, rng: random.Random, expert_schedule: str) -> None:
    family = load_family(write_routed_family(tmp_path, seed=rng.randrange(1000), defer=True))
    engine = build(family, max_lanes=60, expert_schedule=expert_schedule, max_batch_tokens=64)
    asked = []
    for index, steering in enumerate(routings(rng)):
        options = {"seed": rng.getrandbits(40), "logit_bias": marks(engine)}
        request = routed(family, f"r{index}", steering, random_prompt(rng, 1, 60), **options)
        asked.append(verified(request, rng, ALWAYS, every=rng.randint(1, 3)))
    plain = serve(engine, [budgeted(request, None) for request in asked])
    counts = {r.request_id: places(engine, r, plain[r.request_id]) for r in asked}
    shorter = serve(engine, [budgeted(r, (counts[r.request_id] or [None])[0]) for r in asked])
    for name, own in serve(engine, asked, rng).items():
        assert tokens_of(own) == tokens_of(shorter[name])
        assert [o.expert for o in own] == [o.expert for o in shorter[name]]
        assert [o.checked for o in own if o.checked] == [
            CheckedThought(count, o.checked.likely, True) for o in own if o.checked for count in counts[name][:1]
        ]
    engine.check_idle()
