"""AutoGen: its model client with a form, a function and a stream, and two agents that talk to each other."""

import asyncio
import json
import logging
from typing import Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import (
    AssistantMessage,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from server import KEY, NAMED, STEERING, V1, Forecast

logging.disable(logging.WARNING)
ABILITIES = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True,
             "family": "unknown", "multiple_system_messages": False}  # fmt: skip


def model(name: str, **options: object) -> OpenAIChatCompletionClient:
    """A client of the server."""
    return OpenAIChatCompletionClient(model=name, base_url=V1, api_key=KEY, model_info=ABILITIES, **options)


async def weather(town: Literal["Ur", "Bath"]) -> str:
    """The weather of a town."""
    return f"{town} is wet"


async def main() -> None:
    """Everything that is tried."""
    asked = [UserMessage(content="Will it rain?", source="user")]
    formed = await model("demo", extra_body=STEERING, max_tokens=300).create(asked, json_output=Forecast)
    print(f"  form: {Forecast.model_validate_json(formed.content)}")
    pieces = [piece async for piece in model(NAMED, max_tokens=12).create_stream(asked)]
    assert isinstance(pieces[-1], CreateResult) and "".join(pieces[:-1]) == pieces[-1].content
    tool = FunctionTool(weather, description="The weather of a town.", strict=True)
    called = await model(NAMED, max_tokens=300).create(asked, tools=[tool], tool_choice="required")
    (call, *_) = called.content
    result = FunctionExecutionResult(
        call_id=call.id, name=call.name, is_error=False, content=await weather(**json.loads(call.arguments))
    )
    told = [*asked, AssistantMessage(content=[call], source="a"), FunctionExecutionResultMessage(content=[result])]
    assert isinstance((await model(NAMED, max_tokens=12).create(told, tools=[tool])).content, str)
    pair = [AssistantAgent(name, model(NAMED, max_tokens=12)) for name in ("first", "second")]
    talk = await RoundRobinGroupChat(pair, termination_condition=MaxMessageTermination(4)).run(task="Hi")
    assert [message.source for message in talk.messages] == ["user", "first", "second", "first"]
    print("  stream, tools, two agents")


asyncio.run(main())
