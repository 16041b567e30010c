"""Verifiers of thoughts on every endpoint that takes messages, with a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import client_of, events_of
from fastapi import Request
from tiny_models import write_family
from tool_templates import HERMES_TEMPLATE

from ladle.clients.arguments import parse_thinking
from ladle.clients.responses import Token
from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.family.manifest import load_manifest
from ladle.server.access.turns import FairPool
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.fields.chat_messages import Message
from ladle.server.prompts import encode_chat
from ladle.server.reader import Reader
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
CHAT, NATIVE, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/generate", "/v1/messages", "/v1/responses"
USER = [{"role": "user", "content": "What of rain?"}]
TAGS = '[thinking]\nopen = "<<"\nclose = ">>"\n'
YES, NO = 0.0, 0.999999999


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A family whose thoughts are verified where a request does not say."""
    own = '[thinking.verifier]\nevery = 5\nask = "Enough?"\nabove = 0\n'
    family = load_family(write_family(tmp_path_factory.mktemp("own"), "llama", seed=5, extra=TAGS + own))
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", kv_memory=8 << 20))
    engine.tokenizer.chat_template = HERMES_TEMPLATE + "<<"
    engine.start()
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    yield state
    engine.shutdown()


async def ask(
    state: ServerState, path: str = CHAT, status: int = 200, thinking: Any = None, left_out: Any = (), **more: Any
) -> Any:
    """What the endpoint says, of an answer with many ends of sentences."""
    (dot,) = state.require().engine.tokenizer.encode(".", add_special_tokens=False)
    body = {("input" if path == RESPONSES else "messages"): USER, **more}
    if path in (CHAT, NATIVE):
        body |= {"seed": 5, "max_tokens": 60, "logit_bias": {str(dot): 4.0}, "thinking": thinking or {}, **more}
    body = {key: value for key, value in body.items() if key not in left_out}
    async with client_of(state) as client:
        response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    return events_of(response.text) if body.get("stream") else response.json()


def said(reply: Any) -> list[tuple[str, str]]:
    return [(one["message"]["reasoning_content"], one["message"]["content"]) for one in reply["choices"]]


async def test_whole_and_streamed_with_n(state: ServerState) -> None:
    """One that is always content ends every thought at its first check, which is where a budget that ends there does;
    one that never is changes nothing."""
    free = await ask(state, thinking={"verifier": False}, n=3)
    assert "thoughts" not in free["steering"]
    never = await ask(state, thinking={"verifier": {"every": 16, "above": NO}}, n=3)
    counted = "completion_tokens_details"
    assert said(never) == said(free) and never["usage"][counted] == free["usage"][counted]
    checks = never["steering"]["thoughts"]
    assert checks and all(one["ended"] is None and one["checks"] for one in checks)
    verifier = {"every": 16, "ask": "Done?", "above": YES}
    always = await ask(state, thinking={"verifier": verifier, "message": " So:"}, n=3, steering={"trace": True})
    assert [one["index"] for one in always["steering"]["thoughts"]] == [one["index"] for one in checks]
    for one in always["steering"]["thoughts"]:
        budget = {"budget": one["ended"], "message": " So:", "verifier": False}
        short = await ask(state, thinking=budget, n=3)
        assert said(short)[one["index"]] == said(always)[one["index"]]
        tokens = always["steering"]["choices"][one["index"]]["tokens"]
        told = [(place, token["checked"]) for place, token in enumerate(tokens, 1) if "checked" in token]
        assert [(place, what["ends"]) for place, what in told] == [(one["ended"], True)]
        assert 16 <= one["ended"] < 60 and one["checks"] == 1 and 0 < told[0][1]["yes"] < 1
    texts, thoughts = [""] * 3, [""] * 3
    events = await ask(state, thinking={"verifier": verifier, "message": " So:"}, n=3, stream=True)
    for choice in (choice for event in events if event != "[DONE]" for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content") or ""
        thoughts[choice["index"]] += choice["delta"].get("reasoning_content") or ""
    assert list(zip(thoughts, texts, strict=True)) == said(always)
    assert events[-2]["steering"]["thoughts"] == always["steering"]["thoughts"]


async def test_what_the_family_says_holds_where_a_request_does_not(state: ServerState) -> None:
    expected = await ask(state, thinking={"verifier": {"every": 16}}, n=2)
    free = await ask(state, n=2)
    assert all(one["ended"] >= 16 for one in expected["steering"]["thoughts"]), "its bound is the family's"
    pairs = zip(free["steering"]["thoughts"], expected["steering"]["thoughts"], strict=True)
    sooner = [one["ended"] - other["ended"] for one, other in pairs]
    assert max(sooner) <= 0 and min(sooner) < 0
    effort = await ask(state, n=2, reasoning_effort="high", left_out=("thinking",))
    assert effort["steering"]["thoughts"] == free["steering"]["thoughts"]
    more: dict[str, Any] = {"max_tokens": 60, "thinking": {"type": "enabled", "budget_tokens": 50}}
    for path, own in ((MESSAGES, more), (RESPONSES, {"max_output_tokens": 60, "reasoning": {"effort": "low"}})):
        await ask(state, path, **own)
    async with client_of(state) as client:
        tags = (await client.get("/v1/families/tiny")).json()["thinking"]
        metrics = (await client.get("/metrics")).text
    assert tags["verifier"] == {"every": 5, "ask": "Enough?", "above": 0.0}
    cut = next(line for line in metrics.splitlines() if line.startswith("ladle_thoughts_cut_total"))
    assert float(cut.split()[-1]) >= 4


async def test_no_question_is_answered_within_a_thought_that_the_template_opens(state: ServerState) -> None:
    serving = state.require()
    views = [PromptView(kind, "Is it kind?", None) for kind in ("question", "doubt")]
    reader = Reader(Request({"type": "http", "headers": []}), FairPool())
    turns = [Message(role="user", content="What of rain?")]
    seen = (await encode_chat(serving, reader, turns, views)).views
    assert serving.thinking is not None
    opening, closing = serving.thinking.open_ids, serving.thinking.close_ids
    behind_answer, behind_thought = (seen[view] for view in views)
    assert behind_answer[: -2 - len(closing)][-len(opening) :] == opening
    assert behind_answer[-2 - len(closing) : -2] == closing and behind_thought == (*closing, *behind_answer)


async def test_a_form_calls_and_raw_prompts(state: ServerState) -> None:
    """The form of the answer, and calls that must be made, come behind the thought that was ended."""
    verifier = {"verifier": {"every": 16, "above": YES}}
    bound = await ask(state, thinking=verifier, structured_outputs={"regex": "(yes|no), [a-z]{3}"}, max_tokens=200)
    assert bound["choices"][0]["message"]["content"][:3] in ("yes", "no,")
    assert bound["steering"]["thoughts"][0]["ended"]
    tools = {"tools": [{"type": "function", "function": {"name": "now"}}], "tool_choice": "required"}
    called = await ask(state, thinking=verifier, **tools, parallel_tool_calls=False, max_tokens=200)
    assert called["choices"][0]["message"]["tool_calls"] and called["steering"]["thoughts"][0]["ended"]
    raw = await ask(state, NATIVE, thinking=verifier, messages=None, prompt="Q <<It was", logprobs=True)
    (one,) = raw["steering"]["thoughts"]
    tokens = raw["choices"][0]["tokens"]
    assert [i for i, token in enumerate(tokens, 1) if "checked" in token] == [one["ended"]]


@pytest.mark.parametrize(
    ("thinking", "more", "field", "words"),
    [
        ({"verifier": {"every": 15}}, {}, "thinking.verifier.every", "at least 16"),
        ({"verifier": {"every": 0}}, {}, "thinking.verifier.every", "greater than or equal to 1"),
        ({"verifier": {"above": 1}}, {}, "thinking.verifier.above", "less than 1"),
        ({"verifier": {"ask": " "}}, {}, "thinking.verifier.ask", "yes or no"),
        ({"verifier": {"ask": ""}}, {}, "thinking.verifier.ask", "at least 1 character"),
        ({"verifier": {"ask": "?" * 2001}}, {}, "thinking.verifier.ask", "at most 2000"),
        ({"verifier": {"each": 9}}, {}, "thinking.verifier.each", "unknown"),
        ({"verifier": True}, {}, "thinking.verifier", "an object with every, ask and above, or false"),
        ({"verifier": "now"}, {}, "thinking.verifier", "an object with every, ask and above, or false"),
        ({"verifier": {"every": 64}, "budget": 64}, {}, "thinking.verifier.every", "less than the budget"),
        ({"verifier": False, "message": "So"}, {}, "thinking.message", "a budget"),
        ({"verifier": {}}, {"steering": {"search": {"by": "likelihood"}}}, "thinking.verifier", "steering.search"),
        ({"verifier": {"ask": "why " * 499}}, {}, "thinking.verifier.ask", "context"),
    ],
)
async def test_refused_by_name(
    state: ServerState, thinking: dict[str, Any], more: dict[str, Any], field: str, words: str
) -> None:
    error = (await ask(state, status=400, thinking=thinking, **more))["error"]
    assert words in error["message"] and error["param"] == field, error


def test_tables_that_ask_for_nothing_are_no_family(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "llama", seed=5, extra=f"{TAGS}[thinking.verifier]\nevery = 5\n")
    stated = (folder / "family.toml").read_text()
    for wrong in ("every = 0", 'ask = ""', "above = 1", "each = 2"):
        (folder / "family.toml").write_text(stated.replace("every = 5", wrong))
        with pytest.raises(FamilyError, match="verifier"):
            load_manifest(folder)


def test_own_client() -> None:
    assert parse_thinking(None, None) is None
    assert parse_thinking(None, 64) == {"verifier": {"every": 64}}
    assert parse_thinking(9, 4) == {"budget": 9, "verifier": {"every": 4}}
    token = Token.model_validate({"id": 1, "text": "", "checked": {"yes": 0.7, "ends": True}})
    assert token.checked is not None and token.checked.ends
