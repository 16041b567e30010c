"""Both clients, call by call: what is sent, what comes back, what is refused."""

import asyncio
import inspect
import json
import typing
from typing import Any

import httpx
import pydantic
import pytest
from mock_server import FAMILY, MockServer, event, generation

from ladle.clients import AsyncClient, Client, Generation, NotFoundError, Options, ResponseError, UsageError


@pytest.fixture(params=["sync", "async"])
def call(request, connect, aconnect):
    """One call of a method on a fresh client of ``server``, synchronously or not."""

    def sync(server: MockServer, name: str, /, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with connect(server, **(options or {})) as client:
            return getattr(client, name)(*args, **kwargs)

    def asynchronous(
        server: MockServer, name: str, /, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        async def run() -> Any:
            async with aconnect(server, **(options or {})) as client:
                return await getattr(client, name)(*args, **kwargs)

        return asyncio.run(run())

    return sync if request.param == "sync" else asynchronous


def test_chat_sends_messages_and_everything_asked_for(call):
    server = MockServer()
    reply = call(
        server,
        "chat",
        "Tell me about rain.",
        model="demo",
        preference={"positive": 4, "concise": 1},
        method="bone_soup",
        strength=1.5,
        steering={"normalize": "sum"},
        trace=True,
        max_tokens=9,
        temperature=0.0,
        stop=("\n", "END"),
        logit_bias={"7": -1.0},
        seed=3,
    )
    assert server.requests[0].url == "http://ladle.test/v1/generate"
    assert server.body() == {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me about rain."}],
        "steering": {
            "preference": {"positive": 4, "concise": 1},
            "method": "bone_soup",
            "strength": 1.5,
            "trace": True,
            "normalize": "sum",
        },
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": ["\n", "END"],
        "logit_bias": {"7": -1.0},
        "seed": 3,
    }
    assert isinstance(reply, Generation)
    assert reply.text == "Rain is lovely."
    assert reply.message == {"role": "assistant", "content": "Rain is lovely."}
    assert [token.shift for token in reply.tokens] == [0.1, 0.2, 0.3, 0.4]
    assert reply.steering.preference == {"positive": 0.8, "concise": 0.2}
    assert reply.steering.sources[0].coefficients == {"bone-positive": 1.75}
    assert reply.usage.completion_tokens == 4


def test_forms_of_an_answer(call):
    server = MockServer()
    call(server, "chat", "Rain?", model="demo", choice=("wet", "dry"), response_format={"type": "text"})
    assert server.body()["structured_outputs"] == {"choice": ["wet", "dry"]}
    assert server.body()["response_format"] == {"type": "text"} and "choice" not in server.body()


def test_chat_passes_a_conversation_on(call):
    server = MockServer()
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    call(server, "chat", conversation, model="demo")
    assert server.body() == {"model": "demo", "messages": conversation}


def test_generate_sends_the_prompt_as_it_is(call):
    server = MockServer()
    assert call(server, "generate", "Once", model="cheerful").text == " upon a time."
    assert server.body() == {"model": "cheerful", "prompt": "Once"}


@pytest.mark.parametrize("bad", ["chat-empty", "chat-number", "unknown", "twice"])
def test_wrong_calls_are_refused_before_anything_is_sent(call, bad):
    server = MockServer()
    calls: dict[str, tuple[Any, dict[str, Any], str]] = {
        "chat-empty": ([], {}, "non-empty list"),
        "chat-number": ([3], {}, "non-empty list"),
        "unknown": ("x", {"temprature": 1}, "temprature"),
        "twice": ("x", {"method": "base", "steering": {"method": "base"}}, "'method' is given twice"),
    }
    prompt, options, message = calls[bad]
    with pytest.raises(UsageError, match=message):
        call(server, "chat", prompt, model="demo", **options)
    assert server.requests == []


def test_the_only_family_is_the_default_and_is_asked_for_once(connect):
    server = MockServer()
    with connect(server) as client:
        client.chat("a")
        client.generate("b")
    assert [request.url.path for request in server.requests] == ["/v1/families", "/v1/generate", "/v1/generate"]
    assert server.body()["model"] == "demo"


def test_several_families_need_a_choice(call):
    data = [FAMILY, FAMILY | {"name": "other"}]
    with pytest.raises(UsageError, match="demo, other"):
        call(MockServer(httpx.Response(200, json={"object": "list", "data": data})), "chat", "a")


def test_coefficients(call):
    server = MockServer()
    report = call(server, "coefficients", {"positive": 1}, method="bone_soup", model="demo")
    assert server.body() == {"model": "demo", "method": "bone_soup", "preference": {"positive": 1}}
    assert report.coefficients == {"bone-positive": 1.75, "bone-concise": -0.75}
    assert (report.base_share, report.condition, report.l1) == (0.0, 2.5, 2.5)
    call(
        server, "coefficients", {"positive": 1}, method="mage", model="demo", steering={"strength": 2, "value": "both"}
    )
    whole = {"method": "mage", "preference": {"positive": 1}, "strength": 2, "value": "both"}
    assert server.body() == {"model": "demo", "steering": whole}
    with pytest.raises(UsageError, match="'method' is given twice"):
        call(server, "coefficients", method="mage", model="demo", steering={"method": "mod"})


def test_a_search_may_be_named_by_what_judges(call):
    server = MockServer()
    call(server, "generate", "Once", search="explicit", preference={"positive": 1}, model="demo")
    assert server.body()["steering"] == {"preference": {"positive": 1}, "search": {"by": "explicit"}}
    call(server, "chat", "Once", search={"by": "likelihood", "draws": 3}, model="demo")
    assert server.body()["steering"] == {"search": {"by": "likelihood", "draws": 3}}
    with pytest.raises(UsageError, match="'search' is given twice"):
        call(server, "generate", "a", search="explicit", steering={"search": {"by": "implicit"}}, model="demo")


def test_rankings_and_scores(call):
    server = MockServer()
    answer = call(server, "generate", "Once", n=4, rank="explicit", preference={"positive": 1}, model="demo")
    assert server.body()["steering"] == {"preference": {"positive": 1}, "rank": {"by": "explicit"}}
    assert server.body()["n"] == 4 and [choice.score for choice in answer.choices] == [0.75]
    found = call(server, "score", "Once", [" upon", (5, 6)], by="implicit", preference={"positive": 1}, model="demo")
    whole = {"model": "demo", "prompt": "Once", "texts": [" upon", [5, 6]], "by": "implicit"}
    assert server.body() == whole | {"steering": {"preference": {"positive": 1}}}
    assert [text.score for text in found.scores] == [-1.5, -2.5]
    messages = [{"role": "user", "content": "Hi"}]
    call(server, "score", messages, ["a"], by="likelihood", per="token", end=True, model="demo")
    assert server.body() == {
        "model": "demo", "messages": messages, "texts": ["a"], "by": "likelihood", "per": "token", "end": True
    }  # fmt: skip
    with pytest.raises(UsageError, match="list of texts"):
        call(server, "score", "Once", "upon", by="implicit", model="demo")
    with pytest.raises(UsageError, match="'method' is given twice"):
        call(server, "score", "a", ["b"], by="implicit", method="mage", model="demo", steering={"method": "mod"})


def test_families_and_models(call):
    assert [family.name for family in call(MockServer(), "families")] == ["demo"]
    family = call(MockServer(), "family", "demo")
    assert family.matrix == FAMILY["matrix"]
    assert not family.methods["mage"].available
    assert family.members[0].rank == 8
    assert [model.id for model in call(MockServer(), "models")] == ["demo", "cheerful"]
    with pytest.raises(NotFoundError):
        call(MockServer(), "family", "nope")


def test_a_family_name_cannot_escape_its_path(call):
    server = MockServer()
    with pytest.raises(NotFoundError):
        call(server, "family", "../models")
    assert server.requests[0].url.raw_path == b"/v1/families/..%2Fmodels"


@pytest.mark.parametrize("method", ["health", "ready"])
def test_health_and_readiness_never_raise_and_never_repeat(call, method):
    assert call(MockServer(), method) is True
    loading = MockServer(503)
    assert call(loading, method) is False
    assert len(loading.requests) == 1
    assert call(MockServer(httpx.ConnectError("refused")), method) is False


def test_key_and_url_from_arguments_and_environment(connect, monkeypatch):
    server = MockServer()
    with connect(server, api_key="secret") as client:
        client.models()
    assert server.requests[0].headers["authorization"] == "Bearer secret"
    assert server.requests[0].headers["user-agent"].startswith("ladle/")
    monkeypatch.setenv("LADLE_URL", "http://elsewhere:1234/")
    monkeypatch.setenv("LADLE_API_KEY", "from-environment")
    with Client(transport=server.transport) as client:
        client.models()
    assert str(server.requests[1].url) == "http://elsewhere:1234/v1/models"
    assert server.requests[1].headers["authorization"] == "Bearer from-environment"


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://host:1/v1", "http://host:1/v1/models"),
        ("http://host:1/v1/", "http://host:1/v1/models"),
        ("host:1", "http://host:1/v1/models"),
        ("localhost", "http://localhost/v1/models"),
        ("host/ladle/v1", "http://host/ladle/v1/models"),
        (" https://host/ladle/ ", "https://host/ladle/v1/models"),
        ("[::1]:8000", "http://[::1]:8000/v1/models"),
    ],
)
def test_addresses_as_people_write_them(given, asked, monkeypatch):
    for way in ("argument", "environment"):
        server = MockServer(httpx.Response(200, json={"object": "list", "data": []}))
        monkeypatch.setenv("LADLE_URL", given if way == "environment" else "http://wrong")
        with Client(given if way == "argument" else None, transport=server.transport) as client:
            client.models()
        assert str(server.requests[0].url) == asked


@pytest.mark.parametrize("bad", ["ftp://host", "http://", "http://ho st:x", "://"])
def test_addresses_that_are_none(bad):
    with pytest.raises(UsageError, match="url: "):
        Client(bad)


def test_a_pydantic_model_is_a_schema(call):
    class Weather(pydantic.BaseModel):
        wet: bool

    server = MockServer()
    call(server, "chat", "Rain?", model="demo", json_schema=Weather)
    assert server.body()["structured_outputs"] == {"json": Weather.model_json_schema()}


def test_a_system_message_comes_first(call):
    server = MockServer()
    call(server, "chat", "Rain?", model="demo", system="Be brief.")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    assert server.body() == {"model": "demo", "messages": turns}
    with pytest.raises(UsageError, match="system: only with chat"):
        call(server, "generate", "Rain", model="demo", system="Be brief.")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_with_the_answer_and_go_back(connect, stream):
    called = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    whole = generation({"model": "demo", "prompt": "Once"})
    whole["choices"] = [{"index": 0, "text": "So:", "finish_reason": "tool_calls", "tool_calls": [called]}]
    token = event({"index": 0, "token": {"id": 1, "text": "So: <tool_call>"}})
    body = token + event(whole) + b"data: [DONE]\n\n" if stream else json.dumps(whole).encode()
    server = MockServer(httpx.Response(200, content=body), 200)
    tools = ({"type": "function", "function": {"name": "now"}},)
    with connect(server) as client:
        options = {"model": "demo", "tools": tools, "tool_choice": "auto"}
        found = client.chat("When?", stream=True, **options).result() if stream else client.chat("When?", **options)
    assert server.body()["tools"] == list(tools) and server.body()["tool_choice"] == "auto"
    assert (found.text, found.choices[0].finish_reason) == ("So:", "tool_calls")
    assert [(call.id, call.function.name, call.function.arguments) for call in found.tool_calls] == [
        ("call_1", "now", "{}")
    ]
    assert found.message == {"role": "assistant", "content": "So:", "tool_calls": [called]}


def test_unknown_fields_of_an_answer_are_kept(call):
    body = generation({"model": "demo", "prompt": "Once"}) | {"novelty": [1, 2]}
    body["choices"][0]["score"] = 0.5
    reply = call(MockServer(httpx.Response(200, json=body)), "generate", "Once", model="demo")
    assert reply.novelty == [1, 2]
    assert reply.choices[0].score == 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"<html>hello</html>", "not JSON"), (b'{"id": "x"}', "model"), (b"[]", "body")],
)
def test_an_answer_that_is_not_ladles(call, body, message):
    with pytest.raises(ResponseError, match=message):
        call(MockServer(httpx.Response(200, content=body)), "generate", "Once", model="demo")


def test_the_clients_are_twins():
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if inspect.isfunction(member) and not name.startswith("__")
        }

    twin = methods(AsyncClient)
    twin["close"] = twin.pop("aclose")
    assert twin == methods(Client)
    assert set(inspect.signature(Client).parameters) == set(inspect.signature(AsyncClient).parameters)


def test_every_option_is_documented():
    for name in typing.get_type_hints(Options):
        assert name in (Options.__doc__ or ""), name
