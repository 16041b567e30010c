"""What asks nothing about the answer passes; what would change it is honoured or refused by name."""

import json
import random
from typing import Any

import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed
from tool_templates import HERMES_TEMPLATE

from ladle.merging.family.family import Family
from ladle.server.fields.known_fields import UNREAD_CHAT, UNREAD_COMPLETIONS, UNREAD_MESSAGE, UNREAD_PART
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/v1/generate"
USER: list[Any] = [{"role": "user", "content": "Hi"}]
# What the newer endpoints honour of the older ones' fields.
SAMPLED = ("min_p", "min_tokens", "ignore_eos", "presence_penalty", "frequency_penalty")
ANYTHING: list[Any] = [None, True, "flex", 5, -1.5, {"a": "b"}, ["x", {}], "24h", {"type": "ephemeral"}]


async def ask(family: Family, path: str, engine: FakeEngine | None = None, status: int = 200, **body: Any) -> Any:
    async with client_of(fake_state(family, engine or FakeEngine())) as client:
        response = await client.post(path, json={"seed": 1, **body})
    assert response.status_code == status, response.text
    return response.json() if not body.get("stream") else events_of(response.text)


def text(reply: Any) -> str:
    choice = reply["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("name", UNREAD_CHAT)
async def test_fields_of_a_chat_that_ask_nothing(family: Family, name: str) -> None:
    for value in ANYTHING:
        assert text(await ask(family, CHAT, messages=USER, **{name: value})) == "Hello, gentle rain."


@pytest.mark.parametrize("name", UNREAD_COMPLETIONS)
async def test_fields_of_a_completion_that_ask_nothing(family: Family, name: str) -> None:
    for value in ANYTHING:
        assert text(await ask(family, COMPLETIONS, prompt="a", max_tokens=60, **{name: value})) == "Hello, gentle rain."


async def test_parts_messages_and_tools_may_carry_what_is_not_read(family: Family) -> None:
    engine = FakeEngine()
    engine.max_context = 2000
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    function = {"name": "now", "cache_control": {"type": "ephemeral"}, "annotations": {"readOnlyHint": True}}
    tools = [{"type": "function", "function": function, "cache_control": {}, "annotations": {}}]
    plain_tools = [{"type": "function", "function": {"name": "now"}}]
    for value in ANYTHING:
        noise = dict.fromkeys(UNREAD_MESSAGE, value)
        parts = [{"type": "text", "text": "Hi", **dict.fromkeys(UNREAD_PART, value)}]
        await ask(family, CHAT, engine, messages=[{"role": "user", "content": parts, **noise}], tools=tools)
    await ask(family, CHAT, engine, messages=USER, tools=plain_tools)
    assert len({request.prompt for request in engine.requests}) == 1


async def test_what_an_assistant_of_another_provider_refused(family: Family) -> None:
    engine = FakeEngine()
    said: list[dict[str, Any]] = [
        {"content": "No."}, {"content": None, "refusal": "No."}, {"refusal": "No."},
        {"content": [{"type": "refusal", "refusal": "No."}]}, {"content": "No.", "refusal": "Never."},
    ]  # fmt: skip
    for answer in said:
        await ask(family, CHAT, engine, messages=[*USER, {"role": "assistant", **answer}, *USER])
    assert len({request.prompt for request in engine.requests}) == 1
    # What was cut before it said anything is given out so, and comes back.
    cut = {"role": "assistant", "content": None, "refusal": None}
    await ask(family, CHAT, engine, messages=[*USER, cut, *USER])
    await ask(family, CHAT, engine, messages=[*USER, {**cut, "content": ""}, *USER])
    assert engine.requests[-1].prompt == engine.requests[-2].prompt
    for message in ({"role": "user", "refusal": "No."}, {"role": "assistant", "refusal": 5}):
        error = await ask(family, CHAT, engine, 400, messages=[message])
        assert error["error"]["param"] == "messages[0].content"


async def test_names_and_thoughts_reach_templates_that_show_them(family: Family) -> None:
    engine = FakeEngine()
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.name or m.role }}({{ m.reasoning_content or '' }}): {{ m.content }}\n{% endfor %}"
    )
    history = [
        {"role": "user", "name": "Zoe", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "reasoning_content": "hm"},
        {"role": "assistant", "content": "No", "reasoning": "oh"},
    ]
    await ask(family, CHAT, engine, messages=history)
    assert engine.tokenizer.decode(engine.requests[0].prompt) == "Zoe(): Hi\nassistant(hm): Yes\nassistant(oh): No\n"


@pytest.mark.parametrize("arguments", ["", "  ", "{}", None, {}])
@pytest.mark.parametrize("more", [{}, {"type": None}, {"type": "function"}])
async def test_calls_without_arguments_or_type(family: Family, arguments: Any, more: dict[str, Any]) -> None:
    engine = FakeEngine()
    engine.max_context = 2000
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    for content in ({}, {"content": None}, {"content": []}, {"content": ""}):
        call = {"id": "1", "function": {"name": "now", "arguments": arguments}, **more}
        answer = {"role": "tool", "tool_call_id": "1", "name": "now", "content": "noon"}
        history = [*USER, {"role": "assistant", "tool_calls": [call], **content}, answer]
        await ask(family, CHAT, engine, messages=history)
    (prompt,) = {request.prompt for request in engine.requests}
    assert '{"name": "now", "arguments": {}}' in engine.tokenizer.decode(prompt)


async def test_arguments_of_earlier_calls_may_be_objects(family: Family) -> None:
    engine = FakeEngine()
    engine.max_context = 2000
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    given = {"a": [1, "é"], "b": None}
    for arguments in (given, json.dumps(given)):
        call = {"id": "1", "function": {"name": "now", "arguments": arguments}}
        answer = {"role": "tool", "tool_call_id": "1", "content": None}
        await ask(family, CHAT, engine, messages=[*USER, {"role": "assistant", "tool_calls": [call]}, answer])
    (prompt,) = {request.prompt for request in engine.requests}
    assert "<|im_start|>tool\n<|im_end|>" in engine.tokenizer.decode(prompt)
    del call["function"]["arguments"]
    await ask(family, CHAT, engine, messages=[*USER, {"role": "assistant", "tool_calls": [call]}, answer])
    for wrong in (["a"], 5, "[]"):
        call = {"id": "1", "function": {"name": "f", "arguments": wrong}}
        history = [*USER, {"role": "assistant", "tool_calls": [call]}]
        error = (await ask(family, CHAT, engine, messages=history, status=400))["error"]
        assert error["param"] == "messages[1].tool_calls[0].function.arguments"


async def test_detokenize_skips_special_tokens_where_it_is_asked_to(family: Family) -> None:
    engine = FakeEngine()
    (a,) = engine.tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    tokens, end = [a, engine.tokenizer.eos_token_id], engine.tokenizer.eos_token
    async with client_of(fake_state(family, engine)) as client:
        for skips, shown in ((None, f"a{end}"), (False, f"a{end}"), (True, "a")):
            reply = await client.post("/detokenize", json={"tokens": tokens, "skip_special_tokens": skips})
            assert reply.json() == {"prompt": shown}


def other_servers_fields() -> dict[str, Any]:
    """What both older endpoints know of vLLM's and llama.cpp's, at values that change nothing."""
    return {
        "stop_token_ids": [], "skip_special_tokens": True, "min_tokens": 0, "ignore_eos": False, "bad_words": [],
        "include_stop_str_in_output": False, "spaces_between_special_tokens": True, "truncate_prompt_tokens": None,
        "use_beam_search": False, "length_penalty": 1.0, "early_stopping": False, "priority": 0, "top_k": -1,
        "prompt_logprobs": None, "allowed_token_ids": None, "logits_processors": [], "return_token_ids": False,
        "guided_json": None, "vllm_xargs": {}, "request_id": "abc",
        # What the page of llama.cpp's server sends, with its names.
        "dynatemp_range": 0, "dynatemp_exponent": 1, "min_p": 0.05, "xtc_probability": 0, "xtc_threshold": 0.1,
        "typ_p": 1, "repeat_last_n": -1, "repeat_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": 0,
        "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
        "timings_per_token": True, "return_progress": True, "cache_prompt": True, "id_slot": -1, "mirostat": 0,
        "mirostat_tau": 5, "mirostat_eta": 0.1, "typical_p": 1.0, "n_predict": -1, "grammar": "", "n_keep": 0,
        "top_n_sigma": -1.0, "dry_sequence_breakers": ["\n", ":"], "n_probs": 0, "lora": [], "tfs_z": 1,
        "mm_payload": "tensors", "return_mm_kwargs": None, "ec_transfer_params": None, "stream_interval": 4,
        "routed_experts_prompt_start": 0, "return_token_offsets": False, "thinking_token_budget": None,
        "usage": {"include": True},
    }  # fmt: skip


async def test_values_that_change_nothing(family: Family) -> None:
    both = other_servers_fields()
    chat = {
        "add_special_tokens": False, "models": [], "plugins": [], "route": "fallback",
        "add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": {}, "echo": False,
        "documents": None, "chat_template": None, "mm_processor_kwargs": None, "include_reasoning": True,
        "best_of": 1, "tool_choice": "auto", "function_call": "auto", "functions": [], "reasoning_format": "auto",
        "parse_tool_calls": True, "separate_reasoning": True, "extra_body": {}, "reasoning": {},
        "enable_thinking": None, "context_management": [], "mcp_servers": [], "safe_prompt": False,
        "random_seed": None, "deferred": False,
    }  # fmt: skip
    for path, body in (
        (CHAT, {"messages": USER, **both, **chat}),
        (COMPLETIONS, {"prompt": "a", **both, "best_of": 1, "add_special_tokens": True}),
    ):
        for name, value in body.items():
            if name not in ("messages", "prompt"):
                first = next(key for key in ("messages", "prompt") if key in body)
                await ask(family, path, **{first: body[first]}, **{name: value})
        await ask(family, path, **body)
    await ask(family, COMPLETIONS, prompt="a", n=2, best_of=2)
    assert (await ask(family, COMPLETIONS, prompt="a", best_of=2, status=400))["error"]["param"] == "best_of"


async def test_fields_of_servers_that_have_other_apis_too(family: Family) -> None:
    """vLLM has most of its fields on every endpoint."""
    engine = FakeEngine()
    other = other_servers_fields() | {"logit_bias": {}, "structured_outputs": None, "n": 1, "include_reasoning": True}
    for path, body, own in (
        ("/v1/responses", {"input": "Hi"}, {"enable_response_messages": False, "previous_input_messages": None}),
        ("/v1/messages", {"messages": USER, "max_tokens": 60}, {}),
    ):
        engine.requests.clear()
        for more in ({}, *({name: value} for name, value in (other | own).items() if name not in SAMPLED)):
            await ask(family, path, engine, **body, **more)
        assert len({request.prompt for request in engine.requests}) < 2
        for name, value in (("logit_bias", {"1": 1}), ("n", 2), ("stop_token_ids", [1]), ("watermarking", True)):
            error = (await ask(family, path, engine, 400, **body, **{name: value}))["error"]
            assert error["message"].startswith(name), error
    sent = {"messages": USER, "chat_template": None, "mm_processor_kwargs": {}, "add_special_tokens": False}
    async with client_of(fake_state(family, engine)) as client:
        assert (await client.post("/tokenize", json=sent)).status_code == 200


async def test_stop_strings_and_template_variables_everywhere(family: Family) -> None:
    engine = FakeEngine()
    engine.tokenizer.chat_template = "{{ word }}{% for m in messages %}{{ m.content }}{% endfor %}"
    variables = {"chat_template_kwargs": {"word": "So: "}}
    for path, body in (("/v1/responses", {"input": "Hi"}), ("/v1/messages", {"messages": USER, "max_tokens": 60})):
        await ask(family, path, engine, **body, **variables)
        assert engine.tokenizer.decode(engine.requests[-1].prompt) == "So: Hi"
        error = (await ask(family, path, engine, 400, **body, chat_template_kwargs={"messages": []}))["error"]
        assert error["message"].startswith("chat_template_kwargs.messages")
    await ask(family, "/v1/responses", engine, input="Hi", stop="gentle")
    assert engine.requests[-1].sampling.stop == ("gentle",)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE])
async def test_sampling_that_other_servers_know(family: Family, path: str) -> None:
    rng, engine = random.Random(fresh_seed()), FakeEngine()
    prompt: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "a"}
    least = rng.randint(1, 9)
    sent = {
        "min_tokens": least, "ignore_eos": True, "stop_token_ids": [7, 8], "skip_special_tokens": False,
        "include_stop_str_in_output": True, "top_k": -1, "top_p": 0, "temperature": 1.5,
    }  # fmt: skip
    await ask(family, path, engine, max_tokens=9, **prompt, **sent)
    found = engine.requests[0].sampling
    assert (found.min_tokens, found.ignore_eos, found.stop_token_ids) == (least, True, {7, 8})
    assert (found.skip_special_tokens, found.include_stop) == (False, True)
    assert (found.top_k, found.temperature, found.top_p) == (0, 0.0, 1.0)
    for name, value in (
        ("min_tokens", 10), ("min_tokens", -1), ("min_tokens", 1.5), ("stop_token_ids", [320]), ("stop_token_ids", 5),
        ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("ignore_eos", 1), ("skip_special_tokens", "no"),
        ("prompt_logprobs", 21), ("prompt_logprobs", True), ("bad_words", ["x"]),
    ):  # fmt: skip
        if name == "bad_words" and path == GENERATE:
            continue
        error = (await ask(family, path, max_tokens=9, status=400, **prompt, **{name: value}))["error"]
        assert error["param"].startswith(name), error
    form = {"structured_outputs": {"choice": ["yes"]}}
    error = (await ask(family, path, max_tokens=9, status=400, **prompt, min_tokens=2, **form))["error"]
    assert error["param"] == "min_tokens"


async def test_usage_in_every_chunk(family: Family) -> None:
    for path, prompt in ((CHAT, {"messages": USER}), (COMPLETIONS, {"prompt": ["a", "b"]})):
        body = {**prompt, "n": 2, "max_tokens": 4, "stream": True}
        both = {"include_usage": True, "continuous_usage_stats": True}
        *chunks, last, done = await ask(family, path, **body, stream_options=both)
        assert done == "[DONE]" and last["choices"] == []
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"] and min(counts) <= 1
        assert all(chunk["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"] for chunk in chunks)
        *chunks, done = await ask(family, path, **body, stream_options={"continuous_usage_stats": True})
        assert not any("usage" in chunk for chunk in chunks)


async def test_log_probabilities_of_the_prompt(family: Family, real_state: ServerState) -> None:
    async with client_of(real_state) as client:

        async def post(path: str, **body: Any) -> Any:
            reply = await client.post(path, json={"max_tokens": 2, "seed": 1, "prompt_logprobs": 2, **body})
            assert reply.status_code == 200, reply.text
            return reply.json()

        prompt = "the rain in the garden"
        echoed = await client.post(COMPLETIONS, json={"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 2})
        said = echoed.json()["choices"][0]["logprobs"]
        choice = (await post(COMPLETIONS, prompt=[prompt, "a sea"], n=2))["choices"][0]
        first, *others = choice["prompt_logprobs"]
        assert first is None and len(others) > 2
        for place, entry in enumerate(others, start=1):
            own = next(iter(entry.values()))
            assert own["decoded_token"] == said["tokens"][place]
            assert own["logprob"] == pytest.approx(said["token_logprobs"][place], abs=1e-5)
            assert 2 <= len(entry) <= 3 and sorted(value["rank"] for value in entry.values())[:2] == [1, 2]
            better = [value for value in entry.values() if value["rank"] < own["rank"]]
            assert all(value["logprob"] > own["logprob"] for value in better)
        for path, body in ((CHAT, {"messages": USER}), (GENERATE, {"prompt": prompt})):
            reply = await post(path, **body)
            assert (
                reply["prompt_logprobs"][0] is None and len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
            )
        streamed = await client.post(COMPLETIONS, json={"prompt": "a", "stream": True, "prompt_logprobs": 1})
        assert streamed.status_code == 400 and streamed.json()["error"]["param"] == "prompt_logprobs"


async def test_parts_of_fields_that_change_nothing(family: Family) -> None:
    """What clients write out though nobody has asked for it."""
    nothing = {"grammar": None, "json_object": False, "disable_any_whitespace": False, "structural_tag": None}
    form = {"choice": ["Hello, gentle rain."], "regex": None, "json": None, **nothing, "disable_fallback": True}
    for body in (
        {"structured_outputs": form},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False, "continuous_usage_stats": None}},
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "disabled"}, "reasoning_effort": "none"},
        {"thinking": {"type": "adaptive", "budget": None}},
        {"length_penalty": 1, "repeat_penalty": 1.0, "mirostat": 0.0},
    ):
        assert text(await ask(family, CHAT, messages=USER, **body)) == "Hello, gentle rain.", body
    keep = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    for edits in (None, {}, {"edits": []}, keep):
        await ask(family, "/v1/messages", messages=USER, max_tokens=9, context_management=edits)
    for body, param in (
        ({"structured_outputs": {**form, "grammar": "root ::= x"}}, "structured_outputs.grammar"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"thinking": {"type": "disabled", "budget": 5}}, "thinking.budget"),
        ({"mirostat": False}, "mirostat"),
        ({"repeat_penalty": 1.1}, "repeat_penalty"),
        ({"echo": 0}, "echo"),
    ):
        error = (await ask(family, CHAT, messages=USER, status=400, **body))["error"]
        assert error["param"] == param, error


async def test_what_does_not_fit_the_context_is_told_as_clients_look_for_it(family: Family) -> None:
    long = [{"role": "user", "content": "rain " * 200}]
    for path, body in (
        (CHAT, {"messages": long}),
        (CHAT, {"messages": USER, "max_tokens": 500}),
        (CHAT, {"messages": USER, "max_completion_tokens": 128}),
        (COMPLETIONS, {"prompt": "rain " * 200}),
        (COMPLETIONS, {"prompt": [5] * 128}),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 128}),
        (GENERATE, {"messages": long}),
        (COMPLETIONS, {"prompt": "rain " * 100_000}),
    ):
        error = (await ask(family, path, status=400, **body))["error"]
        assert error["code"] == "context_length_exceeded" and error["type"] == "invalid_request_error"
        assert "This model's maximum context length is 128 tokens" in error["message"], json.dumps(error)
