"""LangChain of Python with functions and forms, whole and streamed: ChatOpenAI over chat completions and responses,
ChatAnthropic over messages."""

from typing import Any, Literal

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

from server import KEY, NAMED, STEERING, URL, V1, Forecast


@tool
def weather(town: str, days: int) -> str:
    """The weather of a town."""
    return f"{town} is wet for {days} days"


class Rain(BaseModel):
    """A form without bounds of numbers, which Anthropic's client leaves out."""

    model_config = ConfigDict(extra="forbid")

    town: Literal["Ur", "Bath"]
    wet: bool


# Of a function it forgets that it takes nothing else, which a model of random weights does not come to the end of.
WEATHER = {"name": "weather", "description": "The weather of a town.", "parameters": Forecast.model_json_schema()}
TOOLS = [{"type": "function", "function": WEATHER}]


def openai(model: str, responses: bool, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=V1, api_key=KEY, use_responses_api=responses, **options)


def anthropic(model: str, **options: Any) -> ChatAnthropic:
    if "extra_body" in options:
        options["model_kwargs"] = {"extra_body": options.pop("extra_body")}
    return ChatAnthropic(model=model, base_url=URL, api_key=KEY, **options)


ASKED = [HumanMessage("Will it rain?")]
for label, make in (
    ("chat", lambda model, **options: openai(model, False, **options)),
    ("responses", lambda model, **options: openai(model, True, **options)),
    ("messages", anthropic),
):
    for model, more in ((NAMED, {}), ("demo", {"extra_body": STEERING})):
        assert isinstance(make(model, max_tokens=12, **more).invoke(ASKED).text, str)
        assert [piece for piece in make(model, max_tokens=12, **more).stream(ASKED)]
        caller = make(model, max_tokens=300, **more).bind_tools(TOOLS, tool_choice="weather")
        called = caller.invoke(ASKED)
        (call, *_) = called.tool_calls
        result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
        total: Any = None
        for piece in caller.stream(ASKED):
            total = piece if total is None else total + piece
        assert total.tool_calls and total.tool_calls[0]["args"]["town"] in ("Ur", "Bath")
        talker = make(model, max_tokens=12, **more).bind_tools(TOOLS)
        assert isinstance(talker.invoke([*ASKED, called, result]).text, str)
        formed = make(model, max_tokens=300, **more).with_structured_output(Rain, method="json_schema").invoke(ASKED)
        assert isinstance(formed, Rain)
    print(f"  {label}: text, streams, functions, {formed!r}")
