"""Whatever JSON is sent, the answer is a success or a clear 4xx, never a 500."""

import asyncio
import json

import httpx
import pytest
from fake_engine import FakeEngine, fake_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_templates import HERMES_TEMPLATE

from ladle.merging.family.family import Family
from ladle.server.anthropic.message_requests import MessagesRequest
from ladle.server.app import build_app
from ladle.server.native.generate_requests import CoefficientsRequest, GenerateRequest
from ladle.server.native.score_requests import ScoreRequest
from ladle.server.openai.completion_requests import ChatCompletionRequest, CompletionRequest
from ladle.server.responses.response_requests import ResponsesRequest

ENDPOINTS = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/generate": GenerateRequest,
    "/v1/messages": MessagesRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/coefficients": CoefficientsRequest,
    "/v1/score": ScoreRequest,
}
NEEDED = {
    "/v1/chat/completions": ("messages",),
    "/v1/coefficients": ("preference",),
    "/v1/messages": ("messages", "max_tokens"),
    "/v1/responses": ("input",),
    "/v1/score": ("prompt", "texts", "by"),
}
NAMES = ["positive", "simple", "bone-positive", "only-simple", "tiny", "method", "preference", "coefficients", "trace"]
WORDS = st.sampled_from([*NAMES, "user", "hi", "text", "bone_soup", "base", "tiny/base", "tiny@positive=1", "sum", ""])
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 5, 0.5, 1.0, 1 << 31, 1 << 63, -(1 << 63), 10**400, 1e308, -1e308, 5e-324]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8))
KEYS = st.one_of(WORDS, st.text(max_size=5), st.sampled_from(["5", "17", "role", "content", "type", "include_usage"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
WORDS_OF_SCHEMAS = ["type", "properties", "items", "anyOf", "$ref", "minLength", "pattern", "format", "required", "not"]
SCHEMAS = st.recursive(
    st.sampled_from(
        [{"type": "integer"}, {"enum": ["a", 1]}, {"type": ["string", "null"]}, {"pattern": "a{2"}, True, {}]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("object"), "properties": st.dictionaries(KEYS, inner, max_size=3)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.dictionaries(st.sampled_from(WORDS_OF_SCHEMAS), st.one_of(inner, VALUES), max_size=3),
    ),
    max_leaves=5,
)
FUNCTIONS = st.fixed_dictionaries({"name": st.sampled_from(["f", "g"])}, optional={"parameters": SCHEMAS})
ITEMS = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "developer", "assistant"]), "content": st.text(max_size=9)}
    ),
    st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": WORDS, "output": WORDS}),
    st.fixed_dictionaries(
        {"type": st.just("function_call"), "call_id": WORDS, "name": st.just("f"), "arguments": st.just("{}")}
    ),
)
# Values that are likely to get past the schema and meet what lies behind it.
LIKELY: dict[str, st.SearchStrategy] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=9)}
        ),
        min_size=1,
        max_size=3,
    ),
    "input": st.one_of(st.text(max_size=9), st.lists(ITEMS, max_size=3)),
    "system": st.one_of(st.text(max_size=9), st.lists(st.fixed_dictionaries({"type": WORDS, "text": WORDS}))),
    "instructions": st.text(max_size=9),
    "text": st.fixed_dictionaries({"format": st.fixed_dictionaries({"type": WORDS}, optional={"schema": SCHEMAS})}),
    "prompt": st.one_of(st.text(max_size=12), st.lists(st.integers(0, 400), max_size=4), st.lists(st.text(max_size=4))),
    "texts": st.lists(st.one_of(st.text(max_size=9), st.lists(st.integers(0, 400), max_size=4)), max_size=3),
    "by": st.sampled_from(["likelihood", "implicit", "explicit"]),
    "model": WORDS,
    "steering": st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    "preference": st.dictionaries(WORDS, NUMBERS, max_size=3),
    "method": WORDS,
    "stop": st.text(max_size=3),
    "max_tokens": st.integers(1, 40),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
        optional={"json_schema": st.fixed_dictionaries({"name": st.just("a"), "schema": SCHEMAS})},
    ),
    "structured_outputs": st.one_of(
        st.fixed_dictionaries({"regex": st.text("ab(|)[]{}*+?^$\\d.,1", max_size=9)}),
        st.fixed_dictionaries({"choice": st.lists(st.text(max_size=4), max_size=3)}),
        st.fixed_dictionaries({"json": SCHEMAS}),
    ),
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTIONS}), max_size=2),
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    "logit_bias": st.dictionaries(st.integers(-2, 400).map(str), st.floats(-120, 120), max_size=3),
}
# Values that are sound, whatever stands beside them.
SOUND: dict[str, st.SearchStrategy] = {
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": st.text(min_size=1, max_size=9)}), min_size=1
    ),
    "prompt": st.text(min_size=1, max_size=12),
    "input": st.text(min_size=1, max_size=12),
    "texts": st.lists(st.text(max_size=9), min_size=1, max_size=3),
    "by": st.just("likelihood"),
    "preference": st.fixed_dictionaries({name: st.floats(0.1, 1) for name in ("positive", "simple")}),
    "max_tokens": LIKELY["max_tokens"],
    "stop": st.text(min_size=1, max_size=3),
    "stream": st.booleans(),
    "temperature": st.floats(0, 2),
    "seed": st.integers(0, 1 << 62),
}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_random_bodies(family: Family, path: str) -> None:
    fields = [*ENDPOINTS[path].model_fields, "no_such_field"]
    needed = NEEDED.get(path, ("prompt",))

    @st.composite
    def bodies(draw: st.DrawFn) -> object:
        kind = draw(st.integers(0, 9))
        if kind == 0:
            return draw(VALUES)
        if kind < 6:
            # A sound body, and at times something else in it: what is asked for then gets as far as it can.
            body = {
                name: draw(SOUND[name]) for name in fields if name in SOUND and (name in needed or draw(st.booleans()))
            }
            return body | ({draw(st.sampled_from(fields)): draw(VALUES)} if kind == 5 else {})
        chosen = draw(st.lists(st.sampled_from(fields), max_size=4, unique=True))
        body = {name: draw(st.one_of(LIKELY.get(name, VALUES), VALUES)) for name in chosen}
        if draw(st.integers(0, 3)):
            body |= {name: draw(LIKELY[name]) for name in needed}
        return body

    engine = FakeEngine()
    engine.max_context = 1000
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    app = build_app(fake_state(family, engine))
    statuses: list[int] = []

    async def call(body: object) -> httpx.Response:
        # An exception that reaches the web server is raised here and fails the test.
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://ladle") as client:
            return await client.post(
                path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
            )

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies())
    def check(body: object) -> None:
        response = asyncio.run(call(body))
        statuses.append(response.status_code)
        assert response.status_code in (200, 400, 404), (response.status_code, response.text)
        if response.status_code != 200:
            error = response.json()["error"]
            missing = path == "/v1/messages" and response.status_code == 404
            assert error["message"] and error["type"] == ("not_found_error" if missing else "invalid_request_error")
        assert not engine.running

    check()
    # Some forty to a hundred; as few as 13 came once in hundreds of runs.
    assert statuses.count(200) >= 5, "the bodies must be good enough to reach the engine at times"


@pytest.mark.parametrize("path", ENDPOINTS)
def test_random_bytes(family: Family, path: str) -> None:
    app = build_app(fake_state(family, FakeEngine()))

    async def call(body: bytes) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ladle") as client:
            return await client.post(path, content=body, headers={"content-type": "application/json"})

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=200))
    def check(body: bytes) -> None:
        assert asyncio.run(call(body)).status_code == 400

    check()
