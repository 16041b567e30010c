"""openai-agents against a server process, through both of the APIs that it knows."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from pydantic import BaseModel, Field
from server_process import Server

pytestmark = pytest.mark.anyio
CALLS: list[dict[str, Any]] = []


@function_tool
def weather(town: Literal["Ur", "Bath"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """The weather of a town in some days."""
    CALLS.append({"town": town, "days": days})
    return "wet"


class Rain(BaseModel):
    wet: bool
    days: Annotated[int, Field(ge=1, le=9)]


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[dict[str, Any]]]:
    CALLS.clear()
    yield CALLS


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
async def model(request: pytest.FixtureRequest, tool_server: Server) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(
        base_url=tool_server.v1, api_key=tool_server.key, max_retries=0, timeout=60
    ) as client:
        yield lambda name: request.param(model=name, openai_client=client)


SILENT = RunConfig(tracing_disabled=True)


async def test_an_agent_calls_its_function_and_answers(model: Any, calls: list[dict[str, Any]]) -> None:
    settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=200, temperature=0.7)
    agent = Agent(
        "forecaster",
        instructions="Be kind.",
        tools=[weather],
        model=model("demo"),
        model_settings=settings,
        # What a model of random weights says of its own accord does not end; a form does.
        output_type=Rain,
    )
    result = await Runner.run(agent, "Will it rain?", run_config=SILENT, max_turns=20)
    assert len(calls) >= 1 and isinstance(result.final_output, Rain)
    kinds = [item.type for item in result.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"] and kinds[-1] == "message_output_item"


async def test_a_streamed_agent(model: Any, calls: list[dict[str, Any]]) -> None:
    settings = ModelSettings(tool_choice="weather", max_tokens=200)
    agent = Agent(
        "forecaster", tools=[weather], model=model("demo@positive=1"), model_settings=settings,
        tool_use_behavior="stop_on_first_tool",
    )  # fmt: skip

    result = Runner.run_streamed(agent, "Will it rain?", run_config=SILENT)
    names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert names == ["tool_called", "tool_output"] and result.final_output == "wet" and len(calls) == 1


async def test_forms_and_steering(model: Any) -> None:
    settings = ModelSettings(extra_body={"steering": {"preference": {"concise": 1}}})
    agent = Agent("judge", output_type=Rain, model=model("demo"), model_settings=settings)
    result = await Runner.run(agent, "Will it rain?", run_config=SILENT)
    assert isinstance(result.final_output, Rain)
    raw = result.raw_responses[0].output[0]
    assert json.loads(raw.content[0].text)["days"] == result.final_output.days
