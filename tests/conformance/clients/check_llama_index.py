"""LlamaIndex' OpenAILike: chat, stream, functions, forms."""

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from server import KEY, NAMED, STEERING, V1, Forecast


def weather(town: Literal["Ur", "Bath"]) -> str:
    """The weather of a town."""
    return f"{town} is wet"


options = {"api_base": V1, "api_key": KEY, "is_chat_model": True, "is_function_calling_model": True}
model = OpenAILike(model=NAMED, max_tokens=12, context_window=8192, **options)
asked = [ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Will it rain?")]
assert model.chat(asked).message.content is not None
*_, last = model.stream_chat(asked)
assert last.message.content is not None
steered = OpenAILike(model="demo", max_tokens=300, additional_kwargs={"extra_body": STEERING}, **options)
reply = steered.chat_with_tools([FunctionTool.from_defaults(weather)], "Rain?", tool_required=True)
calls = steered.get_tool_calls_from_response(reply)
assert calls and calls[0].tool_name == "weather" and calls[0].tool_kwargs["town"] in ("Ur", "Bath")
found = steered.as_structured_llm(Forecast).chat(asked)
print("  ", found.raw)
