"""``tool_choice`` that names the functions that are allowed."""

from typing import Any

import pytest
from tool_engine import ToolEngine, call_text

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
USER: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("weather", "now", "later")]


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, "/v1/chat/completions")


def allowed(mode: str, *names: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} if isinstance(name, str) else name for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_only_these_are_shown_and_called(served: ToolEngine, mode: str) -> None:
    served.says = call_text("now", "{}")
    reply = await served.ask(messages=USER, tools=TOOLS, tool_choice=allowed(mode, "now", "later"))
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "now"
    assert "weather" not in served.prompt and "later" in served.prompt
    grammar = served.engine.requests[-1].grammar
    assert grammar is None if mode == "auto" else grammar is not None and "weather" not in grammar.spec.text
    served.says = call_text("weather", "{}")
    if mode == "auto":
        reply = await served.ask(messages=USER, tools=TOOLS, tool_choice=allowed(mode, "now"))
        assert "tool_calls" not in reply["choices"][0]["message"]


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        (allowed("auto"), "tool_choice"),
        (allowed("none", "now"), "tool_choice"),
        (allowed("auto", {}), "tool_choice"),
        (allowed("auto", allowed("auto", "now")), "tool_choice"),
        (allowed("required", "now", "fly"), "tool_choice.allowed_tools.tools"),
    ],
)
async def test_what_is_refused_is_named(served: ToolEngine, choice: dict[str, Any], field: str) -> None:
    error = (await served.ask(400, messages=USER, tools=TOOLS, tool_choice=choice))["error"]
    assert error["param"] == field
    await served.ask(400, messages=USER, tool_choice=choice)
