"""``POST /v1/responses/input_tokens``: what an answer would count of its question."""

from typing import Any

import openai
import pytest
from tool_engine import ToolEngine

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
PATH = "/v1/responses"
TOOLS: list[Any] = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
    {"type": "namespace", "name": "mail", "description": "Letters.", "tools": [{"type": "function", "name": "send"}]},
]


async def test_tokens_are_counted_as_an_answer_counts_them(family: Family) -> None:
    served = ToolEngine(family, PATH)
    client = openai.AsyncOpenAI(base_url="http://ladle/v1", api_key="none", http_client=served.http(), max_retries=0)
    kept = await served.ask(input="Hi")
    counts = set()
    for more in ({}, {"instructions": "Be kind."}, {"tools": TOOLS}, {"previous_response_id": kept["id"]}):
        body: dict[str, Any] = {"input": "Will it rain?", **more}
        running = len(served.engine.requests)
        found = await client.responses.input_tokens.count(model="tiny", **body)
        assert found.object == "response.input_tokens" and len(served.engine.requests) == running
        assert found.input_tokens == (await served.ask(**body))["usage"]["input_tokens"]
        counts.add(found.input_tokens)
    assert len(counts) == 4
    for bad, field in (({"background": True}, "background"), ({"previous_response_id": "x"}, "previous_response_id")):
        error = await served.ask(400, path=f"{PATH}/input_tokens", input="Hi", **bad)
        assert error["error"]["param"] == field
