"""Sound bodies for the generating endpoints that are not OpenAI's older ones: Anthropic's messages, and responses."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ladle.benchmarks.faults.sampling_fields import sampling_fields

MESSAGES, RESPONSES, COUNT = "/v1/messages", "/v1/responses", "/v1/messages/count_tokens"
_SCHEMA = {"type": "object", "properties": {"town": {"enum": ["Ur", "Bath"]}}, "required": ["town"]}

_ARGUMENTS: list[Any] = ['{"town": "Ur"}', {"town": "Ur"}, "", None]


def sound_body(rng: random.Random, path: str, text: Callable[[int], str], longest: int) -> dict[str, Any]:
    """A body for ``path`` without model and steering. ``text`` draws a text of so many words; ``longest``: tokens."""
    body = _response(rng, text) if path == RESPONSES else _message(rng, text)
    if path != COUNT or rng.random() < 0.5:  # what limits an answer asks nothing of a count
        body["max_output_tokens" if path == RESPONSES else "max_tokens"] = rng.randint(1, longest)
    body |= sampling_fields(rng, body)
    if rng.random() < 0.3:
        body["metadata"] = {"user_id": "someone"}
    if path != RESPONSES and rng.random() < 0.3:
        body["thinking"] = {"type": rng.choice(["adaptive", "disabled"])}
    return body


def _message(rng: random.Random, text: Callable[[int], str]) -> dict[str, Any]:
    said: list[dict[str, Any]] = [{"role": "user", "content": text(6)}]
    if rng.random() < 0.4:
        said += [
            {"role": "assistant", "content": [{"type": "text", "text": text(4)}]},
            {"role": "user", "content": [{"type": "text", "text": text(4)}, {"type": "text", "text": text(4)}]},
        ]
    if rng.random() < 0.2:
        said.append({"role": "assistant", "content": text(3)})
    body: dict[str, Any] = {"messages": said}
    if rng.random() < 0.4:
        body["system"] = rng.choice([text(4), [{"type": "text", "text": text(4), "cache_control": {}}]])
    if rng.random() < 0.2:
        call = {"type": "tool_use", "id": "1", "name": "weather", "input": rng.choice([{"town": text(2)}, None])}
        result = {"type": "tool_result", "tool_use_id": "1", "content": text(3)}
        body["messages"] = [
            {"role": "user", "content": text(3)},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        body["tools"] = [{"name": "weather", "input_schema": _SCHEMA}]
        body["tool_choice"] = {"type": rng.choice(["auto", "any", "none"])}
    return body


def _response(rng: random.Random, text: Callable[[int], str]) -> dict[str, Any]:
    body: dict[str, Any] = {"input": text(6)}
    if rng.random() < 0.4:
        body["input"] = [
            {"role": "user", "content": [{"type": "input_text", "text": text(5)}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text(3)}]},
            {"role": rng.choice(["user", "developer"]), "content": text(4)},
        ]
    if rng.random() < 0.2:
        body["input"] = [
            {"role": "user", "content": text(3)},
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": rng.choice(_ARGUMENTS)},
            {"type": "function_call_output", "call_id": "1", "output": text(3)},
        ]
        body["tools"] = [{"type": "function", "name": "weather", "parameters": _SCHEMA}]
        body["tool_choice"] = rng.choice(["auto", "required", "none"])
    elif rng.random() < 0.2:
        body["text"] = {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}}
    told = rng.choice([text(4), [{"role": "developer", "content": text(4)}, {"role": "user", "content": text(2)}]])
    for name, value in (("instructions", told), ("store", rng.random() < 0.5), ("top_logprobs", 2)):
        if rng.random() < 0.3:
            body[name] = value
    return body
