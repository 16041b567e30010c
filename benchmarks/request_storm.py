"""Thousands of generated requests: none fails, none hangs, memory stays flat, and nothing is held at the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp

from ladle.benchmarks.memory_watch import MemoryWatch
from ladle.benchmarks.reply_check import WrongReply, check
from ladle.benchmarks.request_fuzzer import Drawn, RequestFuzzer
from ladle.benchmarks.server_under_test import ServerUnderTest

PATIENCE_S = 600.0
"""A request that takes longer hangs."""
_SHOWN = 5


async def family_of(session: aiohttp.ClientSession) -> dict[str, Any]:
    """The description of the family that is served."""
    async with session.get("/v1/families") as reply:
        described: dict[str, Any] = (await reply.json())["data"][0]
        return described


def session_of(server: ServerUnderTest) -> aiohttp.ClientSession:
    """A client of ``server`` with as many connections as it likes."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    return aiohttp.ClientSession(server.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def ask(session: aiohttp.ClientSession, drawn: Drawn) -> str:
    """What became of one request. Raises WrongReply; a request that hangs or a connection that breaks is one."""
    headers = {"content-type": "application/json"}
    try:
        async with session.post(drawn.path, data=drawn.body, headers=headers) as reply:
            body = await reply.read()
            return check(drawn, reply.status, reply.content_type, body)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise WrongReply(f"{type(error).__name__}: {error}") from None


async def run(server: ServerUnderTest, count: int, concurrency: int, seed: int, vocabulary: int) -> dict[str, object]:
    """One row: ``count`` requests of the fuzzer, ``concurrency`` at a time.

    Memory counts once two fifths of them have been answered.
    """
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    memory = MemoryWatch(server)
    left = count
    start = time.monotonic()
    async with session_of(server) as session:
        fuzzer = RequestFuzzer(random.Random(seed), await family_of(session), vocabulary)

        async def client() -> None:
            nonlocal left
            while left > 0 and server.alive:
                left -= 1
                drawn = fuzzer.draw()
                try:
                    outcome = await ask(session, drawn)
                except WrongReply as error:
                    outcome = "wrong"
                    wrong.append(f"{drawn.path} {drawn.body[:2000]!r}: {error}")
                outcomes[outcome] += 1
                kinds[f"{drawn.kind} {outcome.partition(' ')[0]}"] += 1

        watch = memory.run(lambda: outcomes.total() < count, outcomes.total, 1.0)
        await asyncio.gather(watch, *(client() for _ in range(concurrency)))
    seconds = time.monotonic() - start
    held = server.wait_idle() if server.alive else {"the server has ended": 1.0}
    return {
        "run": "requests",
        "seed": seed,
        "count": sum(outcomes.values()),
        "concurrency": concurrency,
        "seconds": round(seconds, 1),
        "wrong": len(wrong),
        "first_wrong": wrong[:_SHOWN],
        "sound_served": kinds["sound 200"],
        "sound_refused": kinds["sound 400"],
        "mutated_served": kinds["mutated 200"],
        "garbage_served": kinds["garbage 200"],
        "outcomes": dict(sorted(outcomes.items())),
        **memory.growth(lambda look: look.requests >= 2 * count // 5),
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
