"""Thousands of generated requests: none fails, none hangs, memory stays flat, and nothing is held at the end."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
from yarl import URL

from ladle.benchmarks.faults.drawn import Drawn
from ladle.benchmarks.faults.memory_watch import MemoryWatch
from ladle.benchmarks.faults.own_endpoints import Seen
from ladle.benchmarks.faults.reply_check import WrongReply, check
from ladle.benchmarks.faults.request_fuzzer import RequestFuzzer
from ladle.benchmarks.faults.server_under_test import REST_S, ServerUnderTest

PATIENCE_S = 600.0
"""A request that takes longer hangs."""
RESTS = 12
"""So that a third of them is four."""
_SHOWN = 5


async def family_of(session: aiohttp.ClientSession) -> dict[str, Any]:
    """The description of the family that is served."""
    async with session.get("/v1/families") as reply:
        described: dict[str, Any] = (await reply.json())["data"][0]
        return described


def session_of(server: ServerUnderTest) -> aiohttp.ClientSession:
    """A client of ``server`` with as many connections as it likes."""
    return session_at(server.url)


def session_at(url: str) -> aiohttp.ClientSession:
    """``session_of`` the server at ``url``."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    # Less than the server's, which would otherwise close a connection just when it is used again.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=1)
    return aiohttp.ClientSession(url, timeout=timeout, connector=connector)


async def ask(session: aiohttp.ClientSession, drawn: Drawn, seen: Seen | None = None) -> str:
    """What became of one request; ``seen`` is told of it. Raises WrongReply; a request that hangs or a connection that
    breaks is one."""
    headers = {"content-type": "application/json"}
    try:
        path = URL(drawn.path, encoded=True)
        data = io.BytesIO(drawn.body) if drawn.body else None
        async with session.request(drawn.method, path, data=data, headers=headers) as reply:
            if seen is not None and "x-generation-id" in reply.headers:
                seen.stream(reply.headers["x-generation-id"])
            body = await reply.read()
            if seen is not None:
                seen.answer(body)
            return check(drawn, reply.status, reply.content_type, body)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise WrongReply(f"{type(error).__name__}: {error}") from None


async def run(
    server: ServerUnderTest,
    count: int,
    concurrency: int,
    seed: int,
    vocabulary: int,
    warm: int,
    rests: int = RESTS,
    rest_s: float = REST_S,
) -> dict[str, object]:
    """One row: ``warm`` requests of the fuzzer and ``count`` more, ``concurrency`` at a time.

    Every answer is checked. Memory is looked at while the server rests, ``rests`` times once ``warm`` requests have
    been answered: how much lies free between two requests of any size says nothing about what it keeps. A rest ends
    when the server has given back what is free, after ``rest_s`` seconds at the latest.
    """
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    memory = MemoryWatch(server)
    start = time.monotonic()
    async with session_of(server) as session:
        fuzzer = RequestFuzzer(random.Random(seed), await family_of(session), vocabulary)

        async def client(pending: Iterator[int]) -> None:
            for _ in pending:
                if not server.alive:
                    return
                drawn = fuzzer.draw()
                try:
                    outcome = await ask(session, drawn, fuzzer.seen)
                except WrongReply as error:
                    outcome = "wrong"
                    wrong.append(f"{drawn.method} {drawn.path} {drawn.body[:2000]!r}: {error}")
                outcomes[outcome] += 1
                kinds[f"{drawn.kind} {outcome.partition(' ')[0]}"] += 1
                if drawn.path.startswith("/v1/generate/") and outcome == "200":
                    kinds["steered on the way"] += 1

        for part in [warm, *(count * (place + 1) // rests - count * place // rests for place in range(rests))]:
            pending = iter(range(part))
            await asyncio.gather(*(client(pending) for _ in range(concurrency)))
            if server.alive:
                await asyncio.to_thread(server.rest, rest_s)
            memory.look(outcomes.total())
    seconds = time.monotonic() - start
    held = server.wait_idle() if server.alive else {"the server has ended": 1.0}
    return {
        "run": "requests",
        "seed": seed,
        "warm": warm,
        "count": outcomes.total() - warm,
        "concurrency": concurrency,
        "seconds": round(seconds, 1),
        "wrong": len(wrong),
        "first_wrong": wrong[:_SHOWN],
        "sound_served": kinds["sound 200"],
        "sound_refused": kinds["sound 400"],
        "mutated_served": kinds["mutated 200"],
        "garbage_served": kinds["garbage 200"],
        "kept_served": kinds["kept 200"],
        "steered_on_the_way": kinds["steered on the way"],
        "outcomes": dict(sorted(outcomes.items())),
        **memory.growth(lambda look: look.requests > warm),
        "resident_at_rest_mb": [round(look.resident / 1e6, 1) for look in memory.looks],
        "tracebacks": len(server.failures()),
        "unexplained": len(unexplained := server.unexplained()),
        "first_unexplained": unexplained[:_SHOWN],
        "held_at_end": {name: value for name, value in held.items() if value},
    }
