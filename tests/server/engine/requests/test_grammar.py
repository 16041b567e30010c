"""Grammars bind every answer, whatever steers it and whatever shares its batch, and nobody else's."""

import json
import random
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from guided_requests import METHODS, World
from routed_folder import write_routed_family
from seeds import fresh_seed
from tiny_engine import Recorder, alone, build, family_of, make_request, random_prompt, serve
from tiny_models import tiny_tokenizer

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.grammar import Grammar, GrammarCompiler, GrammarError, GrammarSpec
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.scores import grammar_masks

EOS = (2, 0)
SCHEMAS: list[Any] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["wet", "dry"]}, "maxItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"const": None}, {"type": "string", "pattern": "^[a-f]{2,4}$"}]},
]
REGEXES = [r"(yes|no), [a-z]{2,6}\.", r"[0-9]{3}-[0-9]{2}", r"(rain ){1,3}falls", r""]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_tokenizer(), EOS)


def random_grammar(rng: random.Random, compiler: GrammarCompiler) -> Grammar:
    if rng.random() < 0.6:
        return compiler.compile(GrammarSpec.json_schema(rng.choice(SCHEMAS)))
    return compiler.compile(GrammarSpec("regex", rng.choice(REGEXES)))


def text_of(outputs: list[StepOutput]) -> str:
    return "".join(output.text for output in outputs)


def check(request: GenerationRequest, outputs: list[StepOutput]) -> None:
    """A whole answer fulfils its grammar."""
    assert request.grammar is not None
    assert outputs[-1].error is None, outputs[-1].error
    assert outputs[-1].finish_reason == "stop", (request.grammar.spec, text_of(outputs))
    text = text_of(outputs)
    if request.grammar.spec.kind == "regex":
        assert re.fullmatch(request.grammar.spec.text, text), text
    else:
        jsonschema.validate(json.loads(text), json.loads(request.grammar.spec.text))
    assert all(torch.isfinite(torch.tensor(output.logprob)) and output.logprob <= 0 for output in outputs)


def constrained(
    rng: random.Random, request: GenerationRequest, compiler: GrammarCompiler, temperature: float = 1.5
) -> GenerationRequest:
    sampling = replace(
        request.sampling, max_tokens=400, temperature=temperature, seed=rng.getrandbits(60), ignore_eos=False
    )
    return replace(request, grammar=random_grammar(rng, compiler), sampling=sampling)


def numbers(outputs: list[StepOutput]) -> list[tuple[Any, ...]]:
    return [(o.token, o.logprob, o.top, o.trace, o.text, o.finish_reason) for o in outputs]


def test_every_method_follows_its_grammar_beside_free_requests(tmp_path: Path, compiler: GrammarCompiler) -> None:
    """Also where the plan's own mask, or its few candidates, leave nothing that the grammar allows; free requests of
    the same batch get what they get alone, and so do the others."""
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng)
    prompts = world.prompts(rng)
    steerings = [rng.choice(world.steerings(rng, [method])) for method in METHODS] + world.steerings(rng, ["mage"])
    steerings.append({"method": "cd", "preference": {"positive": 1}, "block_length": 5, "candidates": 3})
    bound, free = [], []
    for index, steering in enumerate(steerings):
        traced = {**steering, "trace": rng.random() < 0.3}
        request = world.request(f"bound-{index}", traced, prompts, logprobs=rng.choice([None, 3]))
        bound.append(constrained(rng, request, compiler, rng.choice([0.0, 1.5, 2.0])))
        if index % 8 == 0:
            free.append(world.request(f"free-{index}", traced, prompts, temperature=1.0, seed=index, max_tokens=30))
    roomy = {"max_sequences": 80, "max_lanes": 300, "kv_memory": 64 << 20}
    outputs = serve(build(world.family, **roomy), [*bound, *free], rng)
    for request in bound:
        check(request, outputs[request.request_id])
    for request in [*free, *rng.sample(bound, 3)]:
        single = build(world.family, **roomy, prefix_cache=False)
        assert numbers(outputs[request.request_id]) == numbers(alone(single, request))


def test_routed_requests_follow_their_grammars_through_preemptions(tmp_path: Path, compiler: GrammarCompiler) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True))
    requests, long = [], compiler.compile(GrammarSpec("regex", "([a-z]{3} ){20}end"))
    for index in range(8):
        steering: Mapping[str, Any] = {"method": ["fusion_route", "co_llm", "bone_soup"][index % 3]}
        if steering["method"] == "bone_soup":
            steering = {**steering, "preference": {"positive": 1}}
        plan = resolve(family, Steering.parse(steering))
        prompt = random_prompt(rng, 20, 40)
        request = GenerationRequest(str(index), prompt, plan, SamplingParams(8), {})
        requests.append(constrained(rng, request, compiler))
        if index % 3 < 2:
            requests[-1] = replace(requests[-1], grammar=long)
    roomy = build(family, prefix_cache=False, kv_memory=64 << 20)
    expected = {r.request_id: numbers(alone(roomy, r)) for r in requests}
    per_block = -(-(64 << 20) // roomy.blocks.total)  # bytes, of all lanes' caches
    requests = [replace(r, sampling=replace(r.sampling, max_tokens=100)) for r in requests]
    tight = build(family, kv_memory=50 * per_block, prefix_cache=False)
    outputs = serve(tight, requests)
    for request in requests:
        check(request, outputs[request.request_id])
    assert {name: numbers(found) for name, found in outputs.items()} == expected
    assert tight.stats().preemptions > 0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build(family_of(tmp_path_factory.mktemp("grammar"), seed=fresh_seed() % 1000))


def bound_to(compiler: GrammarCompiler, pattern: str, **sampling: Any) -> GenerationRequest:
    request = make_request("a", [5, 6, 7], **{"max_tokens": 40, **sampling})
    return replace(request, grammar=compiler.compile(GrammarSpec("regex", pattern)))


def test_a_text_ends_where_its_grammar_lets_it(engine: Engine, compiler: GrammarCompiler) -> None:
    letters = dict(zip("abc", tiny_tokenizer().convert_tokens_to_ids(list("abc")), strict=True))
    # The model would end at once: it may not before the third letter, and then it does.
    eager = alone(engine, bound_to(compiler, "[ab]{3,5}", logit_bias=((2, 100.0),)))
    assert re.fullmatch("[ab]{3}", text_of(eager)) and eager[-1].token == 2 and eager[-1].finish_reason == "stop"
    # It never would: the grammar ends with the fifth letter, and that letter ends the text.
    endless = alone(engine, bound_to(compiler, "[ab]{3,5}", logit_bias=((2, -100.0), (0, -100.0))))
    assert re.fullmatch("[ab]{5}", text_of(endless))
    assert endless[-1].finish_reason == "stop" and endless[-1].token in letters.values()
    # The last token may be the last that is allowed: it is a stop all the same, and one before it a length.
    last = alone(engine, bound_to(compiler, "[ab]{5}", max_tokens=len(endless)))
    assert last[-1].finish_reason in ("stop", "length") and text_of(last)
    short = alone(engine, bound_to(compiler, "[ab]{50}", max_tokens=3))
    assert short[-1].finish_reason == "length" and len(short) == 3


def test_stop_strings_and_grammars_end_the_same_text(engine: Engine, compiler: GrammarCompiler) -> None:
    # What might have become a stop string is given out with the end of the grammar.
    held = alone(engine, bound_to(compiler, "xxa", stop=("ab",)))
    assert text_of(held) == "xxa" and held[-1].finish_reason == "stop"
    cut = alone(engine, bound_to(compiler, "xxab+", stop=("ab",)))
    assert text_of(cut) == "xx" and cut[-1].finish_reason == "stop"


def test_logprobs_are_of_the_allowed_tokens_and_traces_of_guidance(tmp_path: Path, compiler: GrammarCompiler) -> None:
    rng = random.Random(seed := fresh_seed())
    engine = build(family_of(tmp_path, seed=seed % 1000), dtype="float64")
    recorder = Recorder(engine)
    coefficients = {"bone-positive": 0.7}
    free = make_request("a", random_prompt(rng, 3, 9), coefficients, trace=True, max_tokens=60, temperature=1.0)
    grammar = compiler.compile(GrammarSpec("regex", "(yes|no), [a-z]{2,6}[.]"))
    outputs = alone(engine, replace(free, grammar=grammar))
    matcher = grammar.start()
    for position, output in enumerate(outputs):
        merged, base = recorder.logits["a"][position].double()
        mask = matcher.compute_bitmask()
        ids = [token for token in range(len(merged)) if mask[token // 8] >> token % 8 & 1]
        expected = torch.log_softmax(merged[ids], dim=-1)[ids.index(output.token)]
        assert output.logprob == pytest.approx(float(expected), abs=1e-9)
        assert output.trace is not None
        shift = torch.nn.functional.kl_div(
            merged.log_softmax(-1), base.log_softmax(-1), reduction="sum", log_target=True
        )
        assert output.trace.shift == pytest.approx(float(shift), abs=1e-6)
        matcher.consume_token(output.token)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (GrammarSpec("regex", "[a-"), "unclosed character class"),
        (GrammarSpec("regex", "(?=a)b"), "look-around"),
        (GrammarSpec("regex", r"(a)\1"), "backreferences"),
        (GrammarSpec("regex", "a^b"), "lookarounds"),
        (GrammarSpec.json_schema({"type": "objekt"}), "Invalid type: objekt"),
        (GrammarSpec.json_schema({"uniqueItems": True}), "uniqueItems"),
        (GrammarSpec.json_schema({"x-guidance": {"lenient": True}, "uniqueItems": True}), "uniqueItems"),
        (GrammarSpec.json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (GrammarSpec.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum (5) is greater"),
        (GrammarSpec.json_schema({"$ref": "http://example.com/x.json"}), "not present"),
        (GrammarSpec.json_schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), "nsatisfiable"),
        (GrammarSpec("lark", "start: nothing"), "nothing"),
    ],
)
def test_what_cannot_be_followed_is_refused(compiler: GrammarCompiler, spec: GrammarSpec, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as refused:
        compiler.compile(spec)
    assert "<state>" not in str(refused.value)


DRAFT_7 = "http://json-schema.org/draft-07/schema#"
FEATURES: list[Any] = [
    {"type": "integer", "multipleOf": 7, "minimum": -50, "maximum": 50},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": {"type": "null"}},
    {"type": "object", "patternProperties": {"^a[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [1, "a"]}, "minItems": 2, "maxItems": 3},
    {"$schema": DRAFT_7, "type": "array", "items": [{"type": "boolean"}, {"const": {"a": [1]}}], "minItems": 2},
    {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 5}]},
    {"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 1, "maximum": 3, "maxLength": 2},
    {
        "$defs": {"n": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}},
        "$ref": "#/$defs/n",
    },
    {"type": "string", "pattern": "b{2}", "maxLength": 6},
    {"type": "string", "format": "date-time"},
]


@pytest.mark.parametrize("schema", FEATURES, ids=lambda schema: next(reversed(schema)))
def test_every_text_that_a_mask_allows_fulfils_its_schema(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    """Random walks along the masks, without a model: what is not refused is kept to the letter."""
    rng = random.Random(fresh_seed())
    grammar, words = compiler.compile(GrammarSpec.json_schema(schema)), compiler._words()
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    complete = 0
    for _ in range(12):
        matcher, text = grammar.start(), b""
        for _ in range(150):
            mask = matcher.compute_bitmask()
            ids = [token for token in range(words.vocab_size) if mask[token // 8] >> token % 8 & 1]
            ending = [token for token in ids if token in EOS or words.decode_bytes([token]) in (b'"', b"}", b"]")]
            token = rng.choice(ending if ending and rng.random() < 0.4 else ids)
            text += b"" if token in EOS else words.decode_bytes([token])
            assert matcher.consume_token(token)
            if matcher.is_stopped():
                complete += 1
                validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))
                break
    assert complete


def test_compiled_grammars_are_kept_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.server.engine.requests.grammar._CACHED", 2)
    compiler = GrammarCompiler(tiny_tokenizer(), EOS)
    first, second, third = (GrammarSpec("regex", letter) for letter in "abc")
    found = compiler.compile(first)
    compiler.compile(second)
    assert compiler.compile(first) is found
    compiler.compile(third)
    assert compiler.compile(first) is found and len(compiler._compiled) == 2
    several = [threading.Thread(target=compiler.compile, args=(GrammarSpec("regex", f"x{n}"),)) for n in range(8)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert len(compiler._compiled) == 2
    with pytest.raises(GrammarError, match="no token that ends a text"):
        GrammarCompiler(tiny_tokenizer(), ()).compile(first)


def test_a_grammar_that_is_slow_from_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.server.engine.requests.grammar._SLOW", -1.0)
    with pytest.raises(GrammarError, match="may begin with takes"):
        GrammarCompiler(tiny_tokenizer(), EOS).compile(GrammarSpec("regex", "a"))


def test_a_grammar_that_becomes_too_much_ends_its_own_request(
    engine: Engine, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = replace(make_request("good", [9, 8], max_tokens=5, ignore_eos=True))
    many = replace(bound_to(compiler, ".*(a.{20}b|c.{30}d).*e{5,60}.*(q.{25}z).*", max_tokens=200, temperature=2.0))
    outputs = serve(engine, [many, good])
    if outputs["a"][-1].finish_reason == "error":
        assert "too complex" in str(outputs["a"][-1].error)
    assert outputs["good"][-1].finish_reason == "length"
    monkeypatch.setattr(grammar_masks, "_PATIENCE", 0.0)
    slow = threading.Event()

    def never(self: Any) -> Any:
        slow.wait(5)
        return b""

    class Stuck:
        compute_bitmask = never

    late = bound_to(compiler, "[ab]+")
    monkeypatch.setattr(Grammar, "start", lambda self: Stuck())
    outputs = serve(engine, [late, good])
    slow.set()
    assert "takes too long" in str(outputs["a"][-1].error)
    assert outputs["good"][-1].finish_reason == "length"
