"""Calls that a stop string cuts, whole and streamed, over the APIs that have stop strings."""

from typing import Any

import pytest
from asgi import client_of, events_of
from tool_engine import ToolEngine

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
USER: list[Any] = [{"role": "user", "content": "Will it rain?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
CUT = '<tool_call>\n{"name": "weather", "arguments": {"town": "Ur", "days": 3}}\n</tool_call>'


@pytest.fixture
def hermes(family: Family) -> ToolEngine:
    return ToolEngine(family, PATH)


NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'


@pytest.mark.parametrize(
    ("says", "stop", "called"),
    [
        (CUT, "Ur", False),
        (CUT, "3}", False),
        (NOW + CUT, '"town"', False),
        (NOW + CUT, "weather", True),  # nothing of the second one is known
        (CUT, "</tool", True),
    ],
)
async def test_a_call_that_a_stop_string_cuts_is_none_to_make(
    hermes: ToolEngine, says: str, stop: str, called: bool
) -> None:
    """Clients that call where they are told to would fail on its arguments."""
    hermes.says = says
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required", "stop": stop}
    flat = [{"name": t["function"]["name"], "input_schema": {"type": "object"}} for t in TOOLS]
    own = {"messages": USER, "tools": flat, "tool_choice": {"type": "any"}, "stop_sequences": [stop], "max_tokens": 200}
    async with client_of(hermes.state) as client:
        for path in (PATH, "/v1/generate"):
            reply = (await client.post(path, json=body)).json()
            *events, last = events_of((await client.post(path, json={**body, "stream": True})).text)[:-1]
            for choice in (reply["choices"][0], (last if "choices" in last else events[-1])["choices"][0]):
                assert choice["finish_reason"] == ("tool_calls" if called else "stop"), (path, choice)
        reply = (await client.post("/v1/messages", json=own)).json()
        assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)
        ended = (await client.post(PATH, json={**body, "max_tokens": 3})).json()["choices"][0]
    assert ended["finish_reason"] == "length"
