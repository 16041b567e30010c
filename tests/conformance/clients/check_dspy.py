"""DSPy's language models, steered by name and by a field. What a signature makes of an answer is no business of the
server's, and a model of random weights keeps to no signature."""

import asyncio

import dspy

from server import KEY, NAMED, SAYING, STEERING, V1, Forecast

tools = [{"type": "function", "function": {"name": "weather", "parameters": Forecast.model_json_schema()}}]
form = {
    "type": "json_schema",
    "json_schema": {"name": "forecast", "schema": Forecast.model_json_schema(), "strict": True},
}
for model, more in ((f"openai/{NAMED}", {}), ("openai/demo", {"extra_body": STEERING})):
    for kind in ("chat", "responses"):
        there = dspy.LM(model, api_base=V1, api_key=KEY, max_tokens=12, cache=False, model_type=kind, **more)
        (said,) = there(messages=SAYING)
        assert isinstance(said if isinstance(said, str) else said["text"], str)
    formed = dspy.LM(model, api_base=V1, api_key=KEY, max_tokens=400, cache=False, response_format=form, **more)
    (found,) = formed(messages=SAYING)
    caller = dspy.LM(model, api_base=V1, api_key=KEY, max_tokens=300, cache=False, **more)
    (called,) = caller(messages=SAYING, tools=tools, tool_choice="required")
    Forecast.model_validate_json(called["tool_calls"][0].function.arguments)
    print(f"  {model}: {Forecast.model_validate_json(found)}")


async def streamed() -> list[str]:
    """The pieces of an answer, as DSPy passes them on."""
    model = dspy.LM(f"openai/{NAMED}", api_base=V1, api_key=KEY, max_tokens=12, cache=False)
    pieces = []
    with dspy.context(lm=model, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        try:
            async for piece in dspy.streamify(dspy.Predict("question -> answer"))(question="Will it rain?"):
                pieces += [choice.delta.content or "" for choice in getattr(piece, "choices", ())]
        except* dspy.utils.exceptions.AdapterParseError:
            pass
    return pieces


found = asyncio.run(streamed())
assert len(found) > 3 and "".join(found), found
print(f"  a stream of {len(found)} pieces")
