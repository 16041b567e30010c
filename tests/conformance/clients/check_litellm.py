"""The LiteLLM SDK: chat, responses and messages, steered by name and by a field."""

import litellm

from server import KEY, NAMED, SAYING, STEERING, URL, V1, Forecast

litellm.telemetry = False
there = {"api_base": V1, "api_key": KEY}
reply = litellm.completion(model=f"openai/{NAMED}", messages=SAYING, max_tokens=12, **there)
assert isinstance(reply.choices[0].message.content, str) and reply.usage.completion_tokens
reply = litellm.completion(model="openai/demo", messages=SAYING, max_tokens=300, response_format=Forecast,
                           extra_body=STEERING, **there)  # fmt: skip
Forecast.model_validate_json(reply.choices[0].message.content)
chunks = list(litellm.completion(model="openai/demo", messages=SAYING, max_tokens=12, stream=True, **there))
assert litellm.stream_chunk_builder(chunks).choices[0].finish_reason in ("stop", "length")
tools = [{"type": "function", "function": {"name": "weather", "parameters": Forecast.model_json_schema()}}]
reply = litellm.completion(model="openai/demo", messages=SAYING, tools=tools, tool_choice="required", max_tokens=300,
                           parallel_tool_calls=False, **there)  # fmt: skip
Forecast.model_validate_json(reply.choices[0].message.tool_calls[0].function.arguments)
chunks = list(litellm.completion(model="openai/demo", messages=SAYING, tools=tools, tool_choice="required",
                                 max_tokens=300, stream=True, parallel_tool_calls=False, **there))  # fmt: skip
whole = litellm.stream_chunk_builder(chunks).choices[0]
Forecast.model_validate_json(whole.message.tool_calls[0].function.arguments)
try:
    litellm.completion(model="openai/demo", messages=[{"role": "user", "content": "rain " * 20000}], **there)
except litellm.ContextWindowExceededError:
    print("  a long prompt is ContextWindowExceededError")
else:
    raise AssertionError("a prompt beyond the context was answered")
found = litellm.responses(model=f"openai/{NAMED}", input="Hi", max_output_tokens=12, **there)
assert found.status in ("completed", "incomplete") and found.output[0].content[0].text is not None
said = litellm.completion(model=f"anthropic/{NAMED}", messages=SAYING, max_tokens=12, api_base=URL, api_key=KEY)
assert isinstance(said.choices[0].message.content, str)
print("  chat, stream, tools, form, responses, Anthropic's messages")
