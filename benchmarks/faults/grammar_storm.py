"""Schemas, regular expressions and texts that nobody would send, against all that is native and sees a client's bytes:
the grammar library, the tokenizer, the JSON reader, the template engine. The server lives, others get their forms."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp

from ladle.benchmarks.faults.reply_check import WrongReply
from ladle.benchmarks.faults.request_fuzzer import Drawn
from ladle.benchmarks.faults.request_storm import ask, session_of
from ladle.benchmarks.faults.schema_fuzzer import SchemaFuzzer
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

HANG_S = 60.0
"""An answer of sixteen tokens that takes longer hangs."""
_EVERY = 25  # requests between two of somebody who asks for an ordinary form
_SHOWN = 5
_PLAIN = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
# What the grammar library has been seen to end its process on, or to take long over.
_KNOWN: list[dict[str, Any]] = [
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"enum": [-9223372036854775807]}},
        }
    },
    {"structured_outputs": {"regex": "(a?){300}a{300}"}},
    {"structured_outputs": {"regex": "(a{1000}){1000}"}},
    {"structured_outputs": {"regex": "a\\"}},
    {"structured_outputs": {"json": {"type": "number", "minimum": 1e-320, "maximum": 1}}},
]


async def run(server: ServerUnderTest, count: int, concurrency: int, seed: int) -> dict[str, object]:
    """One row over ``count`` requests, ``concurrency`` at a time."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, plain = 0.0, []
    drawer = _Drawer(random.Random(seed))
    start = time.monotonic()
    async with session_of(server) as session:

        async def client(pending: Iterator[int]) -> None:
            nonlocal slowest
            for index in pending:
                if not server.alive:
                    return
                begun = time.monotonic()
                try:
                    if index % _EVERY == 0:
                        await _ask_plainly(session)
                        plain.append(time.monotonic() - begun)
                        outcomes["plain"] += 1
                        continue
                    drawn = drawer.draw(index)
                    outcomes[await ask(session, drawn)] += 1
                except WrongReply as error:
                    outcomes["wrong"] += 1
                    wrong.append(
                        f"request {index}: {error}" if index % _EVERY == 0 else f"{drawn.body[:2000]!r}: {error}"
                    )
                seconds = time.monotonic() - begun
                slowest = max(slowest, seconds)
                if seconds > HANG_S:
                    wrong.append(f"{drawn.body[:2000]!r}: took {seconds:.0f} s")

        pending = iter(range(count))
        await asyncio.gather(*(client(pending) for _ in range(concurrency)))
    held = server.wait_idle() if server.alive else {"the server has ended": 1.0}
    return {
        "run": "grammars",
        "seed": seed,
        "count": outcomes.total(),
        "concurrency": concurrency,
        "seconds": round(time.monotonic() - start, 1),
        "wrong": len(wrong),
        "first_wrong": wrong[:_SHOWN],
        "served": outcomes["200"],
        "plain": outcomes["plain"],
        "slowest_s": round(slowest, 1),
        "slowest_plain_s": round(max(plain, default=0.0), 2),
        "workers_ended": server.log.read_text(errors="replace").count("Fatal Python error"),
        "outcomes": dict(sorted(outcomes.items())),
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }


async def _ask_plainly(session: aiohttp.ClientSession) -> None:
    """Ask for an ordinary form, and raise WrongReply unless it is kept to."""
    form = {"type": "json_schema", "json_schema": {"name": "plain", "schema": _PLAIN}}
    async with session.post("/v1/generate", json={"prompt": "a", "max_tokens": 100, "response_format": form}) as reply:
        text = await reply.text()
        try:
            if reply.status != 200 or json.loads(json.loads(text)["choices"][0]["text"])["a"] not in ("x", "y"):
                raise WrongReply(f"an ordinary form: {reply.status} {text[:500]}")
        except (ValueError, KeyError) as error:
            raise WrongReply(f"an ordinary form ({error}): {text[:500]}") from None


class _Drawer:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._schemas = SchemaFuzzer(rng)

    def draw(self, index: int) -> Drawn:
        """The request with this number."""
        rng = self._rng
        path = rng.choice(["/v1/generate", "/v1/completions", "/v1/chat/completions"])
        body: dict[str, Any] = {"max_tokens": rng.choice([1, 4, 16]), "stream": rng.random() < 0.3}
        text = self._text() if rng.random() < 0.2 else "a"
        if path == "/v1/chat/completions":
            body["messages"] = [{"role": rng.choice(["user", "user", "system"]), "content": text}]
        else:
            body["prompt"] = text
        lot = rng.random()
        if index <= 3 * len(_KNOWN) or lot < 0.02:
            body |= rng.choice(_KNOWN)
        elif lot < 0.55:
            schema = {"name": "x", "schema": self._schemas.schema(rng.randint(0, 3))}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif lot < 0.85:
            body["structured_outputs"] = {"regex": self._schemas.regex()}
        elif lot < 0.9:
            body["structured_outputs"] = {"choice": [self._text() for _ in range(rng.randint(1, 4))]}
        elif lot < 0.95:
            function = {"name": "f", "parameters": self._schemas.schema(2)}
            body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        data = json.dumps(body).encode()
        return Drawn(path, self._nested(data) if rng.random() < 0.03 else data, "mutated", bool(body["stream"]))

    def _text(self) -> str:
        """Code points of every kind, and what templates and tokenizers read as their own."""
        rng = self._rng
        pieces = [
            lambda: "".join(
                chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(9)
            ),
            lambda: rng.choice(
                ["{{ 7 * 7 }}", "{% for x in range(10**9) %}", "<|im_end|>", "<begin>", "</s>", "\x00", "\u2028"]
            ),
            lambda: rng.choice("a \n\t\u0301\u200d\ufeff🌧") * rng.choice([1, 50, 3000]),
            lambda: json.dumps(self._schemas.schema(1)),
        ]
        return "".join(rng.choice(pieces)() for _ in range(rng.randint(1, 3)))

    def _nested(self, data: bytes) -> bytes:
        """``data`` with a value nested without end in the place of a number."""
        rng = self._rng
        deep = rng.choice([100, 1000, 10_000])
        value = rng.choice(
            [b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"1" * deep, b'"' + b"\\\\" * deep + b'"']
        )
        return data.replace(b'"max_tokens": ', b'"logit_bias": ' + value + b', "max_tokens": ', 1)
