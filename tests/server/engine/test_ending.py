"""What ends an answer and what may not yet: stop tokens, stop strings, and the least number of tokens."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from guided_requests import METHODS, ROOMY, World
from routed_folder import write_routed_family
from seeds import fresh_seed
from tiny_engine import alone, build, family_of, make_request, random_prompt, serve
from tiny_models import END_OF_TEXT, IM_END, IM_START, tiny_tokenizer

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.detokenizer import StopStrings
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

EOS = 2
EAGER = ((EOS, 100.0),)
"""A bias that ends whatever may end."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build(family_of(tmp_path_factory.mktemp("family"), seed=3))


def text_of(outputs: list[StepOutput]) -> str:
    return "".join(output.text for output in outputs)


def check_length(outputs: list[StepOutput], sampling: SamplingParams) -> None:
    tokens = [output.token for output in outputs]
    assert outputs[-1].error is None, outputs[-1].error
    assert not {EOS, *sampling.stop_token_ids} & set(tokens[: sampling.min_tokens]), (tokens, sampling)
    assert len(tokens) > sampling.min_tokens or outputs[-1].finish_reason == "length"


def test_no_method_ends_an_answer_too_early(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path / "guided", rng)
    requests = []
    steerings = [*world.steerings(rng, METHODS), {"method": "cd", "preference": {"positive": 1}, "block_length": 3}]
    for index, steering in enumerate(steerings):
        options = {
            "max_tokens": 9,
            "min_tokens": rng.randint(1, 9),
            "ignore_eos": False,
            "logit_bias": EAGER,
            "temperature": rng.choice([0.0, 1.0]),
            "seed": rng.randrange(1 << 60),
            "stop_token_ids": frozenset(rng.sample(range(3, 300), rng.choice([0, 40]))),
        }
        requests.append(world.request(str(index), steering, world.prompts(rng), **options))
    found = serve(build(world.family, **ROOMY), requests, rng)
    early = serve(
        build(world.family, **ROOMY),
        [replace(request, sampling=replace(request.sampling, min_tokens=0)) for request in requests],
        rng,
    )
    for request in requests:
        check_length(found[request.request_id], request.sampling)
    shortened = [name for name, outputs in early.items() if len(outputs) < len(found[name])]
    assert len(shortened) > len(requests) / 2, "without a least length most of them end at once"


def test_routed_answers_keep_their_least_length(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    family = load_family(write_routed_family(tmp_path / "routed", defer=True))
    requests = []
    for method in ("fusion_route", "co_llm"):
        for index in range(4):
            plan = resolve(family, Steering.parse({"method": method}))
            sampling = SamplingParams(
                max_tokens=10, min_tokens=rng.randint(1, 8), logit_bias=EAGER, seed=rng.randrange(1 << 60)
            )
            requests.append(GenerationRequest(f"{method} {index}", random_prompt(rng, 2, 20), plan, sampling))
    for name, outputs in serve(build(family), requests, rng).items():
        sampling = next(request.sampling for request in requests if request.request_id == name)
        check_length(outputs, sampling)
        assert len(outputs) == sampling.min_tokens + 1 and outputs[-1].token == EOS


def test_a_least_length_changes_no_token_that_ends_nothing(engine: Engine) -> None:
    rng = random.Random(fresh_seed())
    for seed in range(8):
        prompt = random_prompt(rng, 2, 20)
        plain = alone(engine, make_request("plain", prompt, seed=seed, max_tokens=12))
        count = sum(output.token != EOS for output in plain)
        held = alone(engine, make_request("held", prompt, seed=seed, max_tokens=12, min_tokens=max(1, count)))
        assert [output.token for output in held][:count] == [output.token for output in plain][:count]


def test_stop_tokens_end_a_text_and_are_no_part_of_it_unless_asked(engine: Engine) -> None:
    rng = random.Random(fresh_seed())
    prompt = random_prompt(rng, 2, 20)
    free = alone(engine, make_request("free", prompt, temperature=0.0, max_tokens=12, ignore_eos=True))
    stop = free[rng.randint(2, 9)].token
    place = next(index for index, output in enumerate(free) if output.token == stop)
    before = "".join(output.token_text for output in free[:place])
    for ignore in (False, True):
        options = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": ignore, "stop_token_ids": frozenset({stop})}
        cut = alone(engine, make_request("cut", prompt, **options))
        if not ignore and EOS in [output.token for output in cut]:
            continue
        assert [output.token for output in cut] == [output.token for output in free[: place + 1]]
        assert cut[-1].finish_reason == "stop" and text_of(cut).startswith(before[:-1])
        kept = alone(engine, make_request("kept", prompt, include_stop=True, **options))
        assert text_of(kept) == "".join(output.token_text for output in free[: place + 1]) or "\ufffd" in text_of(kept)
        assert len(text_of(kept)) >= len(text_of(cut))


def test_special_tokens_show_their_names_where_they_are_asked_for(engine: Engine) -> None:
    names = {0: END_OF_TEXT, 1: IM_START, EOS: IM_END}
    for token, name in names.items():
        options = {"temperature": 0.0, "max_tokens": 3, "logit_bias": ((token, 100.0),), "ignore_eos": True}
        assert text_of(alone(engine, make_request("skip", [9], **options))) == ""
        shown = alone(engine, make_request("show", [9], skip_special_tokens=False, **options))
        assert text_of(shown) == name * 3 and shown[-1].finish_reason == "length"
    ended = make_request("end", [9], logit_bias=EAGER, temperature=0.0, skip_special_tokens=False)
    assert text_of(alone(engine, ended)) == "", "the token that ends a text is no text"
    named = replace(ended, sampling=replace(ended.sampling, stop_token_ids=frozenset({EOS}), include_stop=True))
    assert text_of(alone(engine, named)) == IM_END


def test_stop_strings_stop_from_the_least_length_on(engine: Engine) -> None:
    token = tiny_tokenizer()("z", add_special_tokens=False).input_ids[0]
    options = {"temperature": 0.0, "max_tokens": 9, "logit_bias": ((token, 100.0),), "stop": ("zz",)}
    for least, text in ((0, ""), (2, ""), (3, "z"), (6, "zzzz"), (9, "zzzzzzz")):
        outputs = alone(engine, make_request("a", [9], min_tokens=least, **options))
        assert (text_of(outputs), outputs[-1].finish_reason) == (text, "stop")
        assert outputs[-1].completion_tokens == max(2, least)
        whole = alone(engine, make_request("a", [9], min_tokens=least, include_stop=True, **options))
        assert text_of(whole) == text + "zz"


def test_a_stop_string_is_shown_where_it_is_asked_for() -> None:
    finder = StopStrings(["end", "e"], include=True)
    assert finder.push("the") == ("the", True)
    finder = StopStrings(["nd."], include=True)
    assert [finder.push(piece) for piece in ("an", "d", ". and")] == [("a", False), ("", False), ("nd.", True)]
