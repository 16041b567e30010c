"""pydantic-ai through the chat completions, the responses and Anthropic's messages."""

import asyncio
from typing import Literal

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from server import KEY, NAMED, STEERING, URL, V1, Forecast


async def main() -> None:
    openai = OpenAIProvider(base_url=V1, api_key=KEY)
    anthropic = AnthropicProvider(base_url=URL, api_key=KEY)
    for kind, provider in (
        (OpenAIChatModel, openai),
        (OpenAIResponsesModel, openai),
        (AnthropicModel, anthropic),
    ):
        plain = Agent(kind(NAMED, provider=provider), instructions="Be kind.", model_settings={"max_tokens": 12})
        assert isinstance((await plain.run("Tell me about rain.")).output, str)
        async with plain.run_stream("And snow?") as streamed:
            assert isinstance(await streamed.get_output(), str)
        settings = {"max_tokens": 400, "extra_body": STEERING}
        # The form of the answer is a function that must be called.
        formed = Agent(kind("demo", provider=provider), output_type=Forecast, model_settings=settings, retries=3)
        calls: list[str] = []

        @formed.tool_plain
        def weather(town: Literal["Ur", "Bath"], calls: list[str] = calls) -> str:
            calls.append(town)
            return "wet"

        result = await formed.run("Will it rain?")
        assert isinstance(result.output, Forecast), result
        print(f"  {kind.__name__}: {result.output}, {len(calls)} calls")


asyncio.run(main())
