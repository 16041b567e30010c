"""What the engine says of a prompt's own tokens, against the float64 reference on the same text."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from guided_requests import World
from seeds import fresh_seed
from tiny_engine import Collector, alone, assert_idle, build, drain, family_of, make_request, random_prompt, serve

from ladle.merging.exceptions import InputError
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.scores.prompt_scores import why_not

TOLERANCE = 1e-8


def judged(request: GenerationRequest, max_tokens: int = 1, logprobs: int = 2) -> GenerationRequest:
    sampling = replace(request.sampling, prompt_logprobs=True, max_tokens=max_tokens, logprobs=logprobs)
    return replace(request, sampling=sampling)


def said(outputs: Sequence[StepOutput]) -> list[float]:
    assert outputs[-1].finish_reason in ("length", "stop"), outputs[-1]
    assert all(output.prompt is None for output in outputs[1:])
    return [token.logprob for token in outputs[0].prompt or ()]


def most_logit_rows(engine: Engine) -> list[int]:
    """Grows by the logit rows of every step that judges."""
    seen: list[int] = []
    judge = engine.runner._judge.judge

    def watched(logits, rows, chunks):  # type: ignore[no-untyped-def]
        if chunks:
            seen.append(sum(chunk.count for chunk in chunks))
        judge(logits, rows, chunks)

    engine.runner._judge.judge = watched  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    ("arch", "kind", "config"),
    [
        ("llama", "singles", {"full": ("only-positive",)}),
        ("gemma2", "rows", {"final_logit_softcapping": 3.0}),
        ("qwen2", "unreferenced", {"tie": True}),
    ],
)
def test_every_method_that_can(arch: str, kind: str, config: dict, tmp_path: Path) -> None:
    """All of them at once in float64, in chunks of any size, some prompts twice: a prefix that is known by then must
    not hide what was to be said of it."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, arch, kind=kind, **config)
    engine = build(
        world.family, dtype="float64", max_sequences=40, max_lanes=200, max_batch_tokens=232, kv_memory=32 << 20
    )
    rows, engine.scheduler.judged_rows = most_logit_rows(engine), rng.randint(7, 60)
    sent, asked = [], {}
    for index, steering in enumerate(world.some_steerings(rng, 28)):
        prompts = world.prompts(rng, 50)
        request = world.request(f"r{index}", steering, prompts, temperature=0.0)
        if why_not(request.plan):
            with pytest.raises(InputError, match="prompt_logprobs"):
                engine.check(judged(request))
            continue
        for copy in range(1 + (index % 3 == 0)):
            name = f"r{index}.{copy}"
            sent.append(judged(replace(request, request_id=name), rng.choice([0, 1, 3]), rng.choice([0, 3])))
            asked[name] = (steering, prompts[None], sent[-1].sampling)
    outputs = serve(engine, sent, rng)
    assert len({steering["method"] for steering, _, _ in asked.values()}) >= 8
    assert rows and max(rows) <= engine.scheduler.judged_rows
    for name, (steering, prompt, sampling) in asked.items():
        first = outputs[name][0]
        table = torch.log_softmax(world.reference.scores(steering, {None: prompt[:1]}, prompt[1:])[:-1], dim=-1)
        assert len(first.prompt or ()) == len(prompt) - 1 and first.cached_tokens == 0
        for row, token, found in zip(table, prompt[1:], first.prompt or (), strict=True):
            assert found.logprob == pytest.approx(row[token].item(), abs=TOLERANCE), steering
            best = row.topk(sampling.logprobs or 0).values.tolist()
            assert [logprob for _, logprob in found.top] == pytest.approx(best, abs=TOLERANCE), steering
            assert [row[other].item() for other, _ in found.top] == pytest.approx(best, abs=TOLERANCE)
        assert first.completion_tokens == min(1, sampling.max_tokens) == (first.token >= 0)
        assert outputs[name][-1].completion_tokens == sampling.max_tokens
        if sampling.max_tokens:
            continued = world.reference.logprobs(steering, {None: prompt}, [first.token])
            assert first.logprob == pytest.approx(continued[0].item(), abs=TOLERANCE)


def test_neither_load_nor_preemption_changes_a_number(tmp_path: Path) -> None:
    """The KV pool is too small for all of them, and they share steps with ordinary requests."""
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, seed=rng.randrange(100))
    requests = [judged(make_request(f"j{index}", random_prompt(rng, 1, 90), {}, seed=index), 20) for index in range(8)]
    others = [
        make_request(f"o{index}", random_prompt(rng, 40, 40), {}, max_tokens=120, ignore_eos=True) for index in range(8)
    ]
    quiet = build(family)
    expected = {request.request_id: alone(quiet, request) for request in requests}
    crowded = build(family, kv_memory=180 * 1024, max_batch_tokens=64)
    # The others come first and together: their prompts fit, what they write does not.
    outputs = serve(crowded, [*others, *requests])
    assert crowded.stats().preemptions, crowded.stats()
    for name, alone_outputs in expected.items():
        assert said(outputs[name]) == said(alone_outputs)
        assert [output.token for output in outputs[name]] == [output.token for output in alone_outputs]


def test_a_sequence_that_is_preempted_while_judged_says_everything_once(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    engine = build(family_of(tmp_path, seed=1), max_batch_tokens=64, max_sequences=4)
    request = judged(make_request("a", random_prompt(rng, 200, 200), {}))
    expected = said(alone(engine, request))
    collector = Collector()
    engine.submit(request, collector)
    engine.step()
    engine.step()
    (sequence,) = engine.scheduler.running
    assert 0 < len(sequence.judged) < 199
    engine.scheduler._preempt(sequence)
    drain(engine)
    assert_idle(engine)
    assert said(collector.outputs["a"]) == expected and len(expected) == 199


def test_a_judged_prompt_is_there_for_others_to_reuse(tmp_path: Path) -> None:
    engine = build(family_of(tmp_path, seed=2))
    prompt = list(range(3, 60))
    alone(engine, judged(make_request("a", prompt, {}), max_tokens=0))
    assert alone(engine, make_request("b", prompt, {}))[0].cached_tokens == 48
