"""Requests that are made to keep a server's event loop busy, and the first ones for what it makes only once: how long
each holds it, as the server itself sees it."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp

from ladle.benchmarks.faults.request_storm import session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

MOST_S = 0.02
"""How long no request may hold the loop."""
_LAG = "ladle_event_loop_lag_seconds_bucket"
_TRIES = 3  # the least of which counts: whatever else runs on the machine holds the loop up too
_MIB = 1 << 20
FIRST = ("/v1/models", "/v1/families", "/health", "/ready", "/", "/playground/main.js", "/docs", "/openapi.json")
"""What is asked for once each, before all else: the first answer is the one that may take long."""


def attacks(size: int = 4 * _MIB - 4096) -> Iterator[tuple[str, str, bytes]]:
    """(name, path, body) of requests of ``size`` bytes at most."""
    plain: dict[str, Any] = {"prompt": "rain", "max_tokens": 1}
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "rain"}], "max_tokens": 1}

    def of(path: str, *parts: dict[str, Any]) -> tuple[str, bytes]:
        body: dict[str, Any] = {}
        for part in parts:
            body |= part
        return path, json.dumps(body).encode()

    def names(width: int = 16) -> dict[str, int]:
        return {f"f{number:0{width - 8}d}": 1 for number in range(size // (width + 4))}

    completions, chats = "/v1/completions", "/v1/chat/completions"
    few, many = min(300, size // 20), size // 12
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(size // 32)}}
    requests: dict[str, tuple[str, bytes]] = {
        "biases times choices": of(completions, plain, {"n": 128, "logit_bias": {str(n): 1 for n in range(few)}}),
        "very many biases": of(completions, plain, {"logit_bias": {str(n): 1 for n in range(many)}}),
        "wrong biases": of(completions, plain, {"logit_bias": {f"x{n}": 1 for n in range(many)}}),
        "unknown fields": of(completions, plain, names()),
        "unknown fields of messages": of(chats, {"messages": [{"role": "user", "content": "x", **names()}]}),
        "some thousand unknown fields": of(completions, plain, {f"field{n}": n for n in range(min(9000, size // 20))}),
        "as many unknown fields as may be": of(
            completions, plain, {f"f{n}": n for n in range(min(32_000, size // 16))}
        ),
        "as many values as may be": of(completions, plain, {"steering": {"preference": [0] * min(260_000, size // 3)}}),
        "many stops": of(completions, plain, {"stop": ["x" * 8] * (size // 12)}),
        "long stops": of(completions, plain, {"stop": ["x" * (size // 8)] * 7}),
        "stop tokens": of(completions, plain, {"stop_token_ids": [5] * (size // 3)}),
        "wrong stop tokens": of(completions, plain, {"stop_token_ids": ["x"] * (size // 5)}),
        "token ids": of(completions, {**plain, "prompt": [7] * (size // 3)}),
        "prompts of token ids": of(completions, {**plain, "prompt": [[7] * (size // 400)] * 128}),
        "wrong token ids": of("/detokenize", {"tokens": ["x"] * (size // 5)}),
        "tokens": of("/detokenize", {"tokens": [70] * min(260_000, size // 4)}),
        "a large schema": of(chats, chat, _form(schema)),
        "a schema of numbers": of(chats, chat, _form({"enum": list(range(size // 9))})),
        "choices": of(completions, plain, {"structured_outputs": {"choice": ["*" * (size // 1010)] * 1000}}),
        "messages": of(chats, {**chat, "messages": [{"role": "user", "content": "x"}] * 4096}),
        "wrong messages": of(chats, {**chat, "messages": [{"role": "x"}] * min(4096, size // 16)}),
        "blocks of messages": of(
            "/v1/messages", {**chat, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}] * 4096}
        ),
        "results of tools": of("/v1/messages", {**chat, "messages": _results(min(2048, size // 300))}),
        "input items": of("/v1/responses", {"input": [{"role": "user", "content": "x"}] * min(4096, size // 40)}),
        "input parts": of(
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}] * min(4096, size // 70)},
        ),
        "texts to score": of(
            "/v1/score", {"prompt": "rain", "by": "likelihood", "texts": [[7] * min(60, size // 400)] * 128}
        ),
        "messages to count": of("/v1/messages/count_tokens", {"messages": chat["messages"] * min(4096, size // 40)}),
        "messages to tokenise": of("/tokenize", {"messages": chat["messages"] * min(4096, size // 40)}),
        "tools": of(chats, {**chat, "tools": [_tool(f"t{n}", min(200, size // 5000)) for n in range(128)]}),
        "messages of many choices": of(
            chats, {**chat, "n": 128, "messages": chat["messages"] * 8, "stop": ["xy"] * 16, "logprobs": True}
        ),
        "a long message": of(chats, {**chat, "messages": [{"role": "user", "content": "rain " * (size // 5)}]}),
        "names of special tokens": of(chats, {"messages": [{"role": "user", "content": "<|im_end|>" * (size // 10)}]}),
        "a long prompt": of(completions, {**plain, "prompt": "rain " * (size // 5)}),
        "text parts": of(
            chats, {**chat, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * (size // 32)}]}
        ),
        "preferences": of(completions, plain, {"steering": {"preference": names()}}),
        "terms": of(completions, plain, {"steering": {"method": "custom", "terms": [{"source": "x"}] * (size // 20)}}),
        "template variables": of(chats, chat, {"chat_template_kwargs": names()}),
        "a deep value": (completions, b'{"prompt": ' + b"[" * (size // 2) + b"]" * (size // 2 - 20) + b"}"),
        "empty values": (completions, b'{"prompt": [' + b"{}," * (size // 3 - 10) + b"{}]}"),
        "empty texts": (completions, b'{"prompt": [' + b'"",' * (size // 3 - 10) + b'""]}'),
        "escapes": of(completions, {**plain, "user": '"\\' * (size // 4 - 60)}),
        "a long number": (completions, b'{"prompt": "x", "seed": ' + b"9" * (size - 60) + b"}"),
    }
    for name, (path, body) in requests.items():
        yield name, path, body


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _tool(name: str, fields: int) -> dict[str, Any]:
    properties = {f"p{number}": {"type": "string"} for number in range(fields)}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def _results(count: int) -> list[dict[str, Any]]:
    """A conversation in Anthropic's form in which ``count`` calls were answered."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    for number in range(count):
        call = {"type": "tool_use", "id": f"c{number}", "name": "look", "input": {"a": 1}}
        result = {"type": "tool_result", "tool_use_id": f"c{number}", "content": "x"}
        turns += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return turns[: 2 * count - 1]


def slowest(server: ServerUnderTest) -> Callable[[], float]:
    """Begin to look; what is returned says for how many seconds the loop has been held at most since (a bucket's
    upper bound, infinite above all buckets)."""

    def counts() -> dict[float, float]:
        buckets = {labels: count for (name, labels), count in server.samples().items() if name == _LAG}
        return {float(labels.removeprefix("le=").replace("+Inf", "inf")): count for labels, count in buckets.items()}

    before = counts()

    def since() -> float:
        after = {bound: count - before[bound] for bound, count in counts().items()}
        total = after[float("inf")]
        return min((bound for bound, count in after.items() if count >= total), default=0.0)

    return since


async def run(server: ServerUnderTest, size: int = 4 * _MIB - 4096, most_s: float = MOST_S) -> dict[str, object]:
    """One row: how long each attack held the loop, and what the server said."""
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    held: dict[str, float] = {}
    wrong: list[str] = []
    async with session_of(server) as session:
        quiet = slowest(server)
        time.sleep(0.5)
        quiet_s = quiet()
        for path in FIRST:
            since = slowest(server)
            status = await _send(session, path, None)
            held[f"the first {path}"] = since()
            outcomes[str(status)] += 1
            if status != 200:
                wrong.append(f"{path}: {status}")
        for name, path, body in attacks(size):
            held[name] = float("inf")
            for _ in range(_TRIES):
                since = slowest(server)
                status = await _send(session, path, body)
                held[name] = min(held[name], since())
                outcomes[str(status)] += 1
                if not 200 <= status <= 429:
                    wrong.append(f"{name}: {status}")
                    break
                if held[name] <= most_s:
                    break
    wrong += [f"{name}: held the loop for up to {seconds} s" for name, seconds in held.items() if seconds > most_s]
    rest = server.wait_idle()
    return {
        "run": "loop",
        "size": size,
        "seconds": round(time.monotonic() - start, 1),
        "quiet_s": quiet_s,
        "held_s": held,
        "outcomes": dict(outcomes),
        "wrong": len(wrong),
        "first_wrong": wrong[:30],
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in rest.items() if value},
    }


async def _send(session: aiohttp.ClientSession, path: str, body: bytes | None) -> int:
    method, data = ("GET", None) if body is None else ("POST", io.BytesIO(body))
    try:
        async with session.request(method, path, data=data, headers={"content-type": "application/json"}) as reply:
            await reply.read()
            return reply.status
    except (aiohttp.ClientError, TimeoutError):
        return 0
