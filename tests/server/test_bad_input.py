"""Bad input over HTTP: one clear 4xx in OpenAI's envelope that names the field, and nothing runs."""

import json
import typing

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family
from ladle.server.fields.known_fields import CHAT, COMPLETIONS
from ladle.server.openai.completion_requests import ChatCompletionRequest, CompletionRequest

pytestmark = pytest.mark.anyio
USER = [{"role": "user", "content": "hi"}]
CHAT_PATH, COMPLETIONS_PATH, GENERATE_PATH = "/v1/chat/completions", "/v1/completions", "/v1/generate"


async def refused(family: Family, engine: FakeEngine, path: str, body: object, status: int = 400) -> dict:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"] and len(error["message"]) < 3000
    assert not engine.requests, "nothing may run"
    return error


# (field, value, param of the error, words the message must hold)
SAMPLING = [
    ("temperature", -0.1, "temperature", "greater than or equal to 0"),
    ("temperature", 2.01, "temperature", "less than or equal to 2"),
    ("temperature", "1", "temperature", "valid number"),
    ("temperature", True, "temperature", "valid number"),
    ("temperature", [1], "temperature", "valid number"),
    ("top_p", -0.1, "top_p", "greater than or equal to 0"),
    ("top_p", 1.1, "top_p", "less than or equal to 1"),
    ("min_p", -0.1, "min_p", "greater than or equal to 0"),
    ("min_p", 1.1, "min_p", "less than or equal to 1"),
    ("dynatemp_range", 2.1, "dynatemp_range", "less than or equal to 2"),
    ("dynatemp_exponent", 0, "dynatemp_exponent", "greater than 0"),
    ("dynatemp_exponent", 2, "dynatemp_exponent", "it applies only with a dynatemp_range"),
    ("top_k", -2, "top_k", "greater than or equal to -1"),
    ("top_k", 1.5, "top_k", "valid integer"),
    ("repetition_penalty", 0, "repetition_penalty", "greater than 0"),
    ("presence_penalty", 2.1, "presence_penalty", "less than or equal to 2"),
    ("frequency_penalty", -2.1, "frequency_penalty", "greater than or equal to -2"),
    ("n", 0, "n", "greater than or equal to 1"),
    ("n", 129, "n", "less than or equal to 128"),
    ("n", 1.0, "n", "valid integer"),
    ("max_tokens", 0, "max_tokens", "greater than or equal to 1"),
    ("max_tokens", 100000, "max_tokens", "context length is 128"),
    ("max_tokens", 10**400, "max_tokens", ""),
    ("seed", 0.5, "seed", "valid integer"),
    ("seed", 1 << 63, "seed", "less than"),
    ("seed", 10**4000, "seed", ""),
    ("stop", "", "stop", "1 to 512 characters"),
    ("stop", ["a", ""], "stop", "1 to 512 characters"),
    ("stop", ["a"] * 17, "stop", "at most 16"),
    ("stop", [1], "stop", "1 to 512 characters"),
    ("stop", 7, "stop", "at most 16"),
    ("stop", "x" * 513, "stop", "1 to 512 characters"),
    ("stream", "yes", "stream", "valid boolean"),
    ("stream", 1, "stream", "valid boolean"),
    ("user", 5, "user", "valid string"),
    ("model", "", "model", "at least 1 character"),
    ("logit_bias", {"320": 1}, "logit_bias.320", "0 to 306"),
    ("logit_bias", {"-1": 1}, "logit_bias", "token ids"),
    ("logit_bias", {"a": 1}, "logit_bias", "token ids"),
    ("logit_bias", {"07": 1}, "logit_bias", "token ids"),
    ("logit_bias", {"٣": 1}, "logit_bias", "token ids"),
    ("logit_bias", {"9" * 5000: 1}, "logit_bias", "token ids"),
    ("logit_bias", {"5": 101}, "logit_bias", "-100 to 100"),
    ("logit_bias", {"5": "1"}, "logit_bias.5", "valid number"),
    ("logit_bias", [5], "logit_bias", "valid dictionary"),
    ("steering", "bone_soup", "steering", "dictionary"),
    ("steering", {"preferences": {}}, "steering.preferences", "method, preference"),
    ("steering", {"method": 3}, "steering.method", "name of a method"),
    ("steering", {"method": "magic"}, "steering.method", "bone_soup"),
    ("steering", {"method": "bone_soup"}, "steering.preference", "positive, simple"),
    ("steering", {"preference": {"happy": 1}}, "steering.preference.happy", "positive, simple"),
    ("steering", {"preference": {"positive": -1}}, "steering.preference.positive", ">= 0"),
    ("steering", {"preference": {"positive": "1"}}, "steering.preference.positive", ">= 0"),
    ("steering", {"preference": {"positive": True}}, "steering.preference.positive", ">= 0"),
    ("steering", {"preference": {"positive": 10**400}}, "steering.preference.positive", "finite"),
    ("steering", {"preference": {"positive": 0, "simple": 0}}, "steering.preference", "at least one positive"),
    ("steering", {"preference": {}}, "steering.preference", "at least one positive"),
    ("steering", {"preference": [1]}, "steering.preference", "object"),
    ("steering", {"coefficients": {"nobody": 1}}, "steering.coefficients.nobody", "bone-positive"),
    ("steering", {"coefficients": {"bone-simple": "x"}}, "steering.coefficients.bone-simple", "finite"),
    ("steering", {"coefficients": {}}, "steering.coefficients", "over bone-positive"),
    ("steering", {"normalize": "max", "preference": {"simple": 1}}, "steering.normalize", "none, sum, norm"),
    ("steering", {"strength": 1e9, "preference": {"simple": 1}}, "steering.strength", "100"),
    ("steering", {"candidates": 4, "preference": {"simple": 1}}, "steering.candidates", "not supported"),
    ("steering", {"trace": 1}, "steering.trace", "true or false"),
    ("no_such_field", False, "no_such_field", "unknown or unsupported"),
    ("temprature", 0.5, "temprature", "unknown or unsupported field (did you mean 'temperature'?)"),
    ("adapters", "x", "adapters", "unknown or unsupported"),
]


@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH, GENERATE_PATH])
@pytest.mark.parametrize(("field", "value", "param", "words"), SAMPLING)
async def test_sampling_fields(
    family: Family, engine: FakeEngine, path: str, field: str, value: object, param: str, words: str
) -> None:
    prompt: dict = {"messages": USER} if path == CHAT_PATH else {"prompt": "hi"}
    error = await refused(family, engine, path, {**prompt, field: value})
    assert error["param"] == param and words in error["message"], error
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("literal", "param"),
    [
        (b'"temperature": NaN', None),
        (b'"temperature": Infinity', None),
        (b'"temperature": -Infinity', None),
        (b'"temperature": 1e999', "temperature"),
        (b'"steering": {"preference": {"positive": NaN}}', None),
        (b'"steering": {"preference": {"positive": 1e999}}', "steering.preference.positive"),
        (b'"steering": {"coefficients": {"bone-simple": 1e999}}', "steering.coefficients.bone-simple"),
        (b'"steering": {"preference": {"positive": 1}, "strength": 1e999}', "steering.strength"),
        (b'"logit_bias": {"5": -1e999}', "logit_bias.5"),
    ],
)
async def test_numbers_that_are_not_finite(
    family: Family, engine: FakeEngine, literal: bytes, param: str | None
) -> None:
    error = await refused(family, engine, GENERATE_PATH, b'{"prompt": "hi", ' + literal + b"}")
    assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"hi"', b"7", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"[" * 100_000],
)
async def test_bodies_that_are_no_object(family: Family, engine: FakeEngine, body: bytes) -> None:
    await refused(family, engine, GENERATE_PATH, body)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["hi"]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content"),
        ([*USER, {"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[1].role"),
        ([*USER, {"role": "function", "content": "x", "name": "f"}], "messages[1].role"),
        ([*USER, {"role": "wizard", "content": "x"}], "messages[1].role"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name"),
        ([{"role": "user", "content": [{"type": "text", "text": "x", "hue": "red"}]}], "messages[0].content"),
        (
            [*USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "messages[1].tool_calls[0].function",
        ),
    ],
)
async def test_messages(family: Family, engine: FakeEngine, messages: object, param: str) -> None:
    assert (await refused(family, engine, CHAT_PATH, {"messages": messages}))["param"] == param


async def test_tool_messages_are_refused_by_role(family: Family, engine: FakeEngine) -> None:
    """The template of this base has no tools."""
    message = {"role": "tool", "content": "x", "tool_call_id": "1"}
    error = await refused(family, engine, CHAT_PATH, {"messages": [message]})
    assert error["param"] == "messages[0].role" and "'assistant'" in error["message"]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        (7, "prompt"),
        ({}, "prompt"),
        ([True], "prompt"),
        ([1.5], "prompt"),
        ([5, "a"], "prompt"),
        (["a", 5], "prompt"),
        ([[5], "a"], "prompt"),
        ([[]], "prompt"),
        ([-1], "prompt"),
        ([1 << 40], "prompt"),
        ([5, 320], "prompt[1]"),
        ([[5], [320]], "prompt[1][0]"),
        (["a", ""], "prompt[1]"),
        (["a"] * 129, "prompt"),
        ([3] * 128, "prompt"),
        ("rain " * 1000, "prompt"),
    ],
)
async def test_prompts(family: Family, engine: FakeEngine, prompt: object, param: str) -> None:
    assert (await refused(family, engine, COMPLETIONS_PATH, {"prompt": prompt}))["param"] == param


async def test_a_prompt_beyond_the_context_is_told_the_numbers(family: Family, engine: FakeEngine) -> None:
    error = await refused(family, engine, COMPLETIONS_PATH, {"prompt": [3] * 200})
    assert "200 tokens" in error["message"] and "128" in error["message"]
    long = [{"role": "user", "content": "rain " * 1000}]
    assert (await refused(family, engine, CHAT_PATH, {"messages": long}))["param"] == "messages"
    body = {"messages": USER, "max_completion_tokens": 500}
    assert (await refused(family, engine, CHAT_PATH, body))["param"] == "max_completion_tokens"


async def test_fields_that_contradict_each_other(family: Family, engine: FakeEngine) -> None:
    async def param(path: str, **body: object) -> str:
        return (await refused(family, engine, path, body))["param"]

    assert await param(CHAT_PATH, messages=USER, max_tokens=3, max_completion_tokens=4) == "max_tokens"
    assert await param(CHAT_PATH, messages=USER, top_logprobs=3) == "top_logprobs"
    assert await param(CHAT_PATH, messages=USER, logprobs=True, top_logprobs=21) == "top_logprobs"
    assert await param(CHAT_PATH, messages=USER, logprobs=5) == "logprobs"
    assert await param(CHAT_PATH, messages=USER, stream_options={"include_usage": True}) == "stream_options"
    assert await param(CHAT_PATH, messages=USER, stream=True, stream_options={"x": 1}) == "stream_options.x"
    assert await param(COMPLETIONS_PATH, prompt="a", logprobs=21) == "logprobs"
    assert await param(COMPLETIONS_PATH, prompt="a", logprobs=True) == "logprobs"
    assert await param(COMPLETIONS_PATH, prompt=["a"] * 65, n=2) == "n"
    assert await param(GENERATE_PATH) == "prompt"
    assert await param(GENERATE_PATH, prompt="a", messages=USER) == "prompt"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("gpt-4", 404, "tiny/bone_soup"),
        ("other/bone_soup", 404, "cheerful"),
        ("tiny/magic", 404, "tiny/rewarded_soup"),
        ("tiny@", 400, "objective=number"),
        ("tiny@positive", 400, "objective=number"),
        ("tiny@positive=", 400, "objective=number"),
        ("tiny@positive=x", 400, "objective=number"),
        ("tiny@positive=nan", 400, "objective=number"),
        ("tiny@positive=inf", 400, "objective=number"),
        ("tiny@positive=1e999", 400, "objective=number"),
        ("tiny@positive=1,positive=2", 400, "twice"),
        ("tiny@happy=1", 400, "positive, simple"),
        ("tiny@positive=-1", 400, ">= 0"),
        ("tiny@positive=0", 400, "at least one positive"),
        ("tiny//base", 400, "FAMILY"),
        ("tiny/base/x", 400, "FAMILY"),
        (" tiny", 400, "FAMILY"),
        ("../../etc/passwd", 400, "FAMILY"),
        ("tiny\n", 400, "FAMILY"),
        ("x" * 5000, 400, "4096"),
    ],
)
async def test_model_names(family: Family, engine: FakeEngine, model: str, status: int, words: str) -> None:
    error = await refused(family, engine, CHAT_PATH, {"messages": USER, "model": model}, status)
    assert error["param"] == "model" and words in error["message"], error


@pytest.mark.parametrize("name", sorted(CHAT))
async def test_unsupported_chat_fields(family: Family, engine: FakeEngine, name: str) -> None:
    error = await refused(family, engine, CHAT_PATH, {"messages": USER, name: {"anything": "else"}})
    assert error["param"] == name and "does not support" in error["message"]
    await allowed(family, CHAT_PATH, {"messages": USER}, name, CHAT[name])


@pytest.mark.parametrize("name", sorted(COMPLETIONS))
async def test_unsupported_completion_fields(family: Family, engine: FakeEngine, name: str) -> None:
    error = await refused(family, engine, COMPLETIONS_PATH, {"prompt": "a", name: "anything else"})
    assert error["param"] == name and "does not support" in error["message"]
    await allowed(family, COMPLETIONS_PATH, {"prompt": "a"}, name, COMPLETIONS[name])


async def allowed(family: Family, path: str, body: dict, name: str, defaults: tuple[object, ...]) -> None:
    for value in (None, *defaults):
        async with client_of(fake_state(family, FakeEngine())) as client:
            response = await client.post(path, json={**body, name: value})
        assert response.status_code == 200, f"{name}={value!r} changes nothing: {response.text}"


async def test_a_default_of_another_type_is_another_value(family: Family, engine: FakeEngine) -> None:
    await refused(family, engine, COMPLETIONS_PATH, {"prompt": "a", "echo": 0})
    await refused(family, engine, COMPLETIONS_PATH, {"prompt": "a", "best_of": True})


async def test_every_field_of_openais_api_is_honoured_or_refused_by_name() -> None:
    for params, schema in ((chat_params, ChatCompletionRequest), (completion_params, CompletionRequest)):
        official = typing.get_type_hints(params.CompletionCreateParamsBase)
        assert set(official) <= set(schema.model_fields), set(official) - set(schema.model_fields)


async def test_coefficients_refuse_too(family: Family, engine: FakeEngine) -> None:
    for body, param in (
        ({"preference": {"happy": 1}}, "preference.happy"),
        ({"method": "bone_soup"}, "preference"),
        ({"method": "magic", "preference": {"simple": 1}}, "method"),
        ({"preference": {"simple": "1"}}, "preference.simple"),
        ({"preference": {"simple": 1}, "prompt": "a"}, "prompt"),
        ({"preference": {"simple": 0}}, "preference"),
    ):
        error = await refused(family, engine, "/v1/coefficients", body)
        assert error["param"] == param, error
    await refused(family, engine, "/v1/coefficients", {"model": "nobody"}, 404)


async def test_paths_and_methods(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        for response, status in (
            (await client.get("/nothing"), 404),
            (await client.post("/v1/embeddings", json={}), 404),
            (await client.get("/v1/chat/completions"), 405),
            (await client.delete("/v1/models"), 405),
            (await client.get("/v1/families/a/b"), 404),
        ):
            assert response.status_code == status
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert (await client.get("/v1/chat/completions")).headers["allow"] == "POST"
        assert (await client.put("/v1/responses/resp_1")).headers["allow"] == "DELETE, GET, HEAD"


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/responses/compact", "previous_response_id"),
        ("POST", "/v1/responses/resp_1/cancel", "closing a connection"),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages", "/v1/responses"),
        ("POST", "/v1/embeddings", "write text"),
        ("POST", "/v1/conversations", "previous_response_id"),
        ("POST", "/v1/messages/batches", "side by side"),
    ],
)
async def test_endpoints_of_other_servers(
    family: Family, engine: FakeEngine, method: str, path: str, words: str
) -> None:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.request(method, path, json={"model": "tiny"})
    error = response.json()["error"]
    assert response.status_code == 404 and error["type"] in ("invalid_request_error", "not_found_error")
    assert error["message"].startswith(f"this server does not have {method} {path}: ") and words in error["message"]


async def test_several_problems_are_all_named(family: Family, engine: FakeEngine) -> None:
    error = await refused(family, engine, CHAT_PATH, {"messages": USER, "n": 0, "top_p": 7, "tools": [1], "x": 1})
    assert all(name in error["message"] for name in ("n:", "top_p:", "tools[0]:", "x:"))


async def test_a_template_that_refuses_is_the_clients_problem(family: Family, engine: FakeEngine) -> None:
    engine.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    error = await refused(family, engine, CHAT_PATH, {"messages": USER})
    assert error["param"] == "messages" and "roles must alternate" in error["message"]
    engine.tokenizer.chat_template = None
    error = await refused(family, engine, CHAT_PATH, {"messages": USER})
    assert error["param"] == "messages" and "no chat template" in error["message"]


async def test_a_refusal_gives_its_reason_and_what_was_meant_wherever_it_is_said(
    family: Family, engine: FakeEngine
) -> None:
    def steered(**steering: object) -> dict:
        return {"model": "tiny", "prompt": "a", "steering": steering}

    error = await refused(family, engine, GENERATE_PATH, steered(method="parm"))
    assert "'parm' is not allowed: the family has no" in error["message"] and "; allowed: bone_soup" in error["message"]
    error = await refused(family, engine, GENERATE_PATH, steered(method="bone_soop"))
    assert "(did you mean 'bone_soup'?)" in error["message"]
    parts = [{"until": 3, "method": "parm"}, {}]
    error = await refused(family, engine, GENERATE_PATH, steered(schedule=parts))
    assert error["param"] == "steering.schedule.0.method" and "the family has no" in error["message"]
    terms = [{"source": "base", "weight": 1}, {"source": "base", "weight": -1}]
    error = await refused(family, engine, GENERATE_PATH, steered(method="custom", terms=terms))
    assert error["message"].startswith("steering.terms: the weights of the sources cancel out")
    error = await refused(family, engine, "/v1/coefficients", {"method": "parm", "preference": {"positive": 1}})
    assert error["message"].startswith("method: 'parm' is not allowed: the family has no")
