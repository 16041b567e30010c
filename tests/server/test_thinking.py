"""Thoughts apart from answers, and budgets for them, on every endpoint that takes messages."""

import re
from pathlib import Path
from typing import Any

import pytest
from asgi import client_of, events_of, named_events_of
from fake_engine import FakeEngine, fake_state
from tiny_models import write_family
from tool_templates import HERMES_TEMPLATE

from ladle.clients.painter import Painter
from ladle.clients.payload import generation_body
from ladle.clients.responses import Token
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.merging.family.manifest import load_manifest
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
CHAT, NATIVE, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/generate", "/v1/messages", "/v1/responses"
USER = [{"role": "user", "content": "What of <think> and rain?"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if open %}<think>\n{% endif %}{% endif %}"
    "{# <think> </think> #}"
)
SAID = "<think>It pours.</think>Wet, it is."
OPEN = {"chat_template_kwargs": {"open": True}}


def thinker(reply: str = SAID, template: str = TEMPLATE) -> FakeEngine:
    engine = FakeEngine(reply)
    engine.max_context = 3000
    engine.tokenizer.chat_template = template
    return engine


async def ask(family: Family, path: str, engine: FakeEngine | None = None, status: int = 200, **body: Any) -> Any:
    asked = {"input": USER} if path == RESPONSES else {"messages": USER}
    async with client_of(fake_state(family, engine or thinker())) as client:
        response = await client.post(path, json={**asked, **body})
    assert response.status_code == status, response.text
    if not body.get("stream") or status != 200:
        return response.json()
    events = (named_events_of if path in (MESSAGES, RESPONSES) else events_of)(response.text)
    return [event for event in events if event != "[DONE]"]


async def test_a_chat_has_its_thought_apart(family: Family) -> None:
    for opened, said in ((False, SAID), (True, SAID.removeprefix("<think>"))):
        body: dict[str, Any] = {"thinking": {}, "logprobs": True, **(OPEN if opened else {})}
        whole = await ask(family, CHAT, thinker(said), **body)
        message = whole["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("It pours.", "Wet, it is.")
        counted = len(thinker().tokenizer.encode("It pours."))
        assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": counted}
        told = "".join(token["token"] for token in whole["choices"][0]["logprobs"]["content"])
        assert told == "Wet, it is."
        chunks = await ask(family, CHAT, thinker(said), stream=True, stream_options={"include_usage": True}, **body)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "It pours."
        assert "".join(delta.get("content") or "" for delta in deltas) == "Wet, it is."
        assert chunks[-1]["usage"] == whole["usage"]
    plain = await ask(family, CHAT)
    assert plain["choices"][0]["message"] == {"role": "assistant", "content": SAID, "refusal": None}
    assert "completion_tokens_details" not in plain["usage"]


async def test_budgets_by_number_and_by_effort(family: Family, tmp_path: Path) -> None:
    """The message comes in front of the tag; names of special tokens in it stay text."""
    engine = thinker(SAID.removeprefix("<think>"))
    ids = engine.tokenizer.encode("It pours.")
    thinking = {"budget": 2, "message": " <|im_end|>..."}
    message = (await ask(family, CHAT, engine, thinking=thinking, **OPEN))["choices"][0]["message"]
    assert message["reasoning_content"] == engine.tokenizer.decode(ids[:2]) + " <|im_end|>..."
    assert engine.eos.isdisjoint(engine.requests[0].thinking.message)  # type: ignore[union-attr]
    nothing: tuple[dict[str, Any], ...] = ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}})
    for body in nothing:
        none = (await ask(family, CHAT, thinker("Wet."), **body, **OPEN))["choices"][0]["message"]
        assert (none["reasoning_content"], none["content"]) == ("", "Wet.")
    extra = '[thinking]\nopen = "<<"\nclose = ">>"\nbudgets = {low = 3, xhigh = 70000}\n'
    own = load_family(write_family(tmp_path, "llama", seed=5, extra=extra))
    for effort, budget in (("low", 3), ("medium", 2048), ("xhigh", 70000), ("none", 0)):
        engine = thinker("<<Hm>>Yes", HERMES_TEMPLATE)
        reply = (await ask(own, CHAT, engine, reasoning_effort=effort))["choices"][0]["message"]
        assert engine.requests[0].thinking.budget == budget  # type: ignore[union-attr]
        assert reply["reasoning_content"] == ("" if effort == "none" else "Hm")


async def test_stop_strings_and_calls_are_of_the_answer(family: Family) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "now"}}]
    said = f"<think>Shall I? {call} STOP</think>{call}"
    engine = thinker(said, HERMES_TEMPLATE + "{# <think> </think> #}")
    message = (await ask(family, CHAT, engine, thinking={}, tools=tools))["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1 and message["reasoning_content"] == f"Shall I? {call} STOP"
    stopped = await ask(family, CHAT, thinker("<think>no STOP</think>go STOP on"), thinking={}, stop=["STOP"])
    assert stopped["choices"][0]["message"]["content"] == "go "
    assert stopped["choices"][0]["message"]["reasoning_content"] == "no STOP"
    cut = await ask(family, CHAT, thinker("<think>It pours and pours"), thinking={}, max_tokens=12)
    choice = cut["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert "<think>It pours and pours".startswith("<think>" + choice["message"]["reasoning_content"])


async def test_the_native_endpoint(family: Family) -> None:
    whole = await ask(family, NATIVE, thinking={"budget": 90}, logprobs=True)
    choice = whole["choices"][0]
    assert (choice["reasoning_content"], choice["text"]) == ("It pours.", "Wet, it is.")
    said = [token.get("reasoning_content") for token in choice["tokens"]]
    assert "".join(filter(None, said)) == "It pours." and said[-1] is None
    raw = thinker(SAID.removeprefix("<think>"))
    async with client_of(fake_state(family, raw)) as client:
        body = {"prompt": "Q <think>It was", "thinking": {"budget": 50}, "stream": True}
        events = events_of((await client.post(NATIVE, json=body)).text)
    tokens = [event["token"] for event in events if "token" in event]
    assert "".join(token.get("reasoning_content", "") for token in tokens) == "It pours."
    assert "".join(token["text"] for token in tokens) == "Wet, it is."


async def test_anthropics_blocks(family: Family) -> None:
    thinking = {"type": "enabled", "budget_tokens": 30}
    blocks = (await ask(family, MESSAGES, max_tokens=60, thinking=thinking))["content"]
    assert blocks == [
        {"type": "thinking", "thinking": "It pours.", "signature": ""},
        {"type": "text", "text": "Wet, it is."},
    ]
    events = await ask(family, MESSAGES, max_tokens=60, thinking=thinking, stream=True)
    kinds = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking", "text"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "It pours."
    assert "".join(delta.get("text", "") for delta in deltas) == "Wet, it is."
    error = (await ask(family, MESSAGES, status=400, max_tokens=30, thinking=thinking))["error"]
    assert error["message"].startswith("thinking.budget_tokens")


async def test_items_of_responses(family: Family) -> None:
    reasoning = {"effort": "low"}
    whole = await ask(family, RESPONSES, reasoning=reasoning)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "It pours."}]
    assert whole["output"][1]["content"][0]["text"] == "Wet, it is." and whole["reasoning"]["effort"] == "low"
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = await ask(family, RESPONSES, reasoning=reasoning, stream=True)
    said = [event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"]
    final = events[-1]["response"]["output"]
    assert "".join(said) == "It pours." and [item["type"] for item in final] == ["reasoning", "message"]
    places = {event["item_id"]: event["output_index"] for event in events if "item_id" in event}
    assert places == {item["id"]: index for index, item in enumerate(final)}


async def test_with_a_model(tmp_path: Path) -> None:
    """The budget holds for every choice, whole and streamed, in front of forms and of calls that must be made."""
    extra = '[thinking]\nopen = "<<"\nclose = ">>"\n'
    family = load_family(write_family(tmp_path, "llama", seed=5, extra=extra))
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", kv_memory=8 << 20))
    engine.tokenizer.chat_template = HERMES_TEMPLATE + "{% if open %}<<{% endif %}"
    engine.start()
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    forced = len(engine.tokenizer.encode("So:"))
    body = {"messages": USER, "thinking": {"budget": 6, "message": "So:"}, "seed": 5, "max_tokens": 90, **OPEN}
    regex = {"structured_outputs": {"regex": "(yes|no), [a-z]{3}"}, "n": 3}
    call = {"tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"}
    try:
        async with client_of(state) as client:
            bound = (await client.post(CHAT, json={**body, **regex})).json()
            events = events_of((await client.post(CHAT, json={**body, **regex, "stream": True})).text)
            called = (await client.post(CHAT, json={**body, **call, "parallel_tool_calls": False})).json()
            tags = (await client.get(f"/v1/families/{family.name}")).json()["thinking"]
    finally:
        engine.shutdown()
    assert (tags["open"], tags["close"]) == ("<<", ">>") and tags["budgets"]["low"] == 512
    texts, thoughts = [""] * 3, [""] * 3
    for choice in (choice for event in events if event != "[DONE]" for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content") or ""
        thoughts[choice["index"]] += choice["delta"].get("reasoning_content") or ""
    messages = [choice["message"] for choice in bound["choices"]]
    assert [message["content"] for message in messages] == texts and len(set(thoughts)) > 1
    assert [message["reasoning_content"] for message in messages] == thoughts
    assert all(re.fullmatch("(yes|no), [a-z]{3}", text) for text in texts)
    assert all(thought.endswith("So:") for thought in thoughts)
    assert bound["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3 * (6 + forced)
    message = called["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "now" and message["reasoning_content"].endswith("So:")


@pytest.mark.parametrize(
    ("path", "body", "field", "said"),
    [
        (CHAT, {"thinking": {"budget": 5}}, "thinking", "no tags around thoughts"),
        (CHAT, {"reasoning_effort": "low"}, "reasoning_effort", "no tags around thoughts"),
        (RESPONSES, {"reasoning": {"effort": "low"}}, "reasoning.effort", "no tags around thoughts"),
        (CHAT, {"thinking": {"message": "a"}}, "thinking.message", "needs a budget"),
        (CHAT, {"thinking": {"budget": -1}}, "thinking.budget", "greater than or equal to 0"),
        (CHAT, {"thinking": {"budget": 1, "steps": 2}}, "thinking.steps", ""),
    ],
)
async def test_refused_by_name(family: Family, path: str, body: dict[str, Any], field: str, said: str) -> None:
    error = (await ask(family, path, FakeEngine(), 400, **body))["error"]
    assert error["param"] == field and said in error["message"], error


async def test_refused_of_families_that_think(family: Family) -> None:
    for body, field in (
        ({"thinking": {"budget": 1, "message": "a</think>"}}, "thinking.message"),
        ({"thinking": {"budget": 1}, "reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort"),
    ):
        assert (await ask(family, CHAT, thinker(), 400, **body))["error"]["param"] == field
    for effort in ("none", "medium"):
        passed = await ask(family, CHAT, FakeEngine(), reasoning_effort=effort)
        assert "reasoning_content" not in passed["choices"][0]["message"]
    engine = FakeEngine()
    for more in ({}, {"reasoning": {"effort": "medium", "summary": "auto"}}):
        await ask(family, RESPONSES, engine, **more)
    adaptive = {"type": "adaptive"}
    for effort in (None, "medium", "low", "max"):
        more = {} if effort is None else {"thinking": adaptive, "output_config": {"effort": effort}}
        await ask(family, MESSAGES, engine, max_tokens=9, **more)
    await ask(family, CHAT, engine, thinking=adaptive, reasoning_effort="low")
    assert {request.thinking for request in engine.requests} == {None}


async def test_efforts_of_anthropics(family: Family) -> None:
    adaptive = {"type": "adaptive"}
    for effort, budget in (("low", 512), ("high", None), (None, None)):
        engine = thinker()
        reply = await ask(family, MESSAGES, engine, max_tokens=60, thinking=adaptive, output_config={"effort": effort})
        assert [block["type"] for block in reply["content"]] == ["thinking", "text"]
        assert engine.requests[0].thinking.budget == budget  # type: ignore[union-attr]
    for more, effort in (({}, "low"), ({"thinking": adaptive}, "max"), ({"thinking": {"type": "disabled"}}, "medium")):
        body = {"max_tokens": 60, "output_config": {"effort": effort}, **more}
        error = (await ask(family, MESSAGES, thinker(), 400, **body))["error"]
        assert error["message"].startswith("output_config.effort")


def test_half_a_pair_of_tags_is_no_family(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama", seed=5, extra='[thinking]\nopen = "<t>"\n')
    with pytest.raises(FamilyError, match="give both or neither"):
        load_manifest(folder)


def test_own_client() -> None:
    body = generation_body("m", {"prompt": "a"}, {"thinking": 0}, False)
    assert body["thinking"] == {"budget": 0}
    painted = Painter().paint(Token(id=1, text="", reasoning_content="hm"))
    assert painted.plain == "hm" and painted.style == "dim"
