"""Tools of the Responses API that are more than functions: namespaces of them, and searches beside them."""

import json
from typing import Any

import openai
import pytest
from tool_engine import ToolEngine, call_text

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
TOWN = {"type": "object", "properties": {"town": {"enum": ["Ur", "Bath"]}}, "required": ["town"]}
SEND: dict[str, Any] = {"type": "function", "name": "send", "description": "One.", "parameters": TOWN, "strict": False}
FLAT: dict[str, Any] = {**SEND, "description": None}
MAIL: dict[str, Any] = {"type": "namespace", "name": "mail", "description": "Letters.", "tools": [SEND]}
POST: dict[str, Any] = {"type": "namespace", "name": "post_", "tools": [{"type": "function", "name": "send"}, SEND]}
SEARCH: dict[str, Any] = {"type": "web_search", "external_web_access": False, "filters": {"allowed_domains": ["a.b"]}}


@pytest.fixture
def served(family: Family) -> ToolEngine:
    return ToolEngine(family, "/v1/responses")


async def test_functions_of_namespaces_are_told_apart(served: ToolEngine) -> None:
    arguments = '{"town": "Ur"}'
    served.says = call_text("mail__send", arguments) + call_text("send", arguments)
    reply = await served.ask(input="Hi", tools=[FLAT, MAIL])
    assert '"name": "mail__send"' in served.prompt and "Letters.\\nOne." in served.prompt
    first, second = reply["output"]
    assert (first["namespace"], first["name"], first["arguments"]) == ("mail", "send", arguments)
    assert second["name"] == "send" and "namespace" not in second
    assert [tool["type"] for tool in reply["tools"]] == ["function", "namespace"]
    assert reply["tools"][1]["tools"][0]["name"] == "send"

    events = await served.ask(input="Hi", tools=[FLAT, MAIL], stream=True, store=False)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(item.get("namespace"), item["name"]) for item in done] == [("mail", "send"), (None, "send")]

    # The history shows each call as the model wrote it, whether it is sent or kept.
    result = {"type": "function_call_output", "call_id": first["call_id"], "output": "sent"}
    served.says = "Done."
    await served.ask(input=[{"role": "user", "content": "Hi"}, first, second, result], tools=[FLAT, MAIL])
    sent = served.prompt
    assert sent.count("mail__send") == 2
    going_on = await served.ask(input=[result], previous_response_id=reply["id"], tools=[FLAT, MAIL])
    assert served.prompt == sent
    async with served.http() as http:
        listed = await http.get(f"http://ladle/v1/responses/{going_on['id']}/input_items?order=asc")
    called = [item for item in listed.json()["data"] if item["type"] == "function_call"]
    assert [(item.get("namespace"), item["name"]) for item in called] == [("mail", "send"), (None, "send")]


async def test_what_must_be_called_is_found_by_its_namespace(served: ToolEngine) -> None:
    choice = {"type": "function", "name": "send", "namespace": "mail"}
    await served.ask(input="Hi", tools=[FLAT, MAIL], tool_choice=choice)
    grammar = served.engine.requests[-1].grammar
    assert grammar is not None and "mail__send" in grammar.spec.text and '"send' not in grammar.spec.text
    some = {"type": "allowed_tools", "mode": "auto", "tools": [choice]}
    await served.ask(input="Hi", tools=[FLAT, MAIL], tool_choice=some)
    assert served.prompt.count('"name": "') == 1 and "mail__send" in served.prompt


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [SEARCH]}, "tools[0].type"),
        ({"tools": [SEARCH], "tool_choice": "required"}, "tools[0].type"),
        ({"tools": [SEND, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1].type"),
        ({"tools": [{**MAIL, "tools": []}]}, "tools[0].tools"),
        ({"tools": [{**MAIL, "tools": [MAIL]}]}, "tools[0].tools[0].type"),
        ({"tools": [{**MAIL, "tools": [SEARCH]}]}, "tools[0].tools[0].type"),
        ({"tools": [{**MAIL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [POST]}, "tools"),
        ({"tools": [MAIL, {**SEND, "name": "mail__send"}]}, "tools"),
        ({"tools": [{"name": "send"}]}, "tools[0].type"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [FLAT, MAIL], "tool_choice": {"type": "function", "name": "x", "namespace": "mail"}}, "tool_choice"),
        ({"tools": [MAIL], "tool_choice": {"type": "function", "name": "send"}}, "tool_choice.name"),
        (
            {
                "tools": [FLAT, {**MAIL, "tools": [{**SEND, "parameters": {"type": "array"}}]}],
                "tool_choice": "required",
            },
            "tools[1].tools[0].parameters",
        ),
    ],
)
async def test_what_is_refused_is_named(served: ToolEngine, body: dict[str, Any], field: str) -> None:
    error = (await served.ask(400, input="Hi", **body))["error"]
    assert error["param"].startswith(field) and error["message"].startswith(field), error


async def test_schemas_are_named_by_their_place_among_all_tools(served: ToolEngine) -> None:
    """Where only some may be called, too."""
    bad = {"type": "function", "name": "bad", "parameters": {"type": "array"}}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "bad"}]}
    error = (await served.ask(400, input="Hi", tools=[FLAT, MAIL, bad], tool_choice=choice))["error"]
    assert error["param"] == "tools[2].parameters"


async def test_searches_beside_functions_are_passed_over(served: ToolEngine) -> None:
    client = openai.AsyncOpenAI(base_url="http://ladle/v1", api_key="none", http_client=served.http(), max_retries=0)
    for tools in ([SEND], [SEND, SEARCH], [{"type": "web_search_preview_2025_03_11"}, SEND]):
        reply = await client.responses.create(model="tiny", input="Hi", tools=tools)  # type: ignore[arg-type]
        assert json.loads(reply.model_dump_json())["tools"][0]["name"] == "send" and len(reply.tools) == 1
    assert len({request.prompt for request in served.engine.requests}) == 1
