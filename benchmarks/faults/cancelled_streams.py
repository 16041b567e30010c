"""Streams that are left at random moments: none of them leaves anything behind, and the answers that others get beside
them are exactly those that they get alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp

from ladle.benchmarks.faults.reply_check import strict
from ladle.benchmarks.faults.request_fuzzer import RequestFuzzer
from ladle.benchmarks.faults.request_storm import family_of, session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

_CANCELLED = ("ladle_requests_cancelled_total", "")
_WITNESSES = 12
_EACH = 3  # steering objects of each method
_WATCHING = 4
_LONG = 400  # tokens of an answer that nobody waits for


async def _served(session: aiohttp.ClientSession, fuzzer: RequestFuzzer, method: str) -> dict[str, Any]:
    """A steering object of ``method`` that the server takes, and that does not end in scores that are no numbers."""
    for _ in range(100):
        steering = fuzzer.steering(method)
        body = {"prompt": "rain", "max_tokens": 8, "temperature": 0, "steering": steering}
        async with session.post("/v1/generate", json=body) as reply:
            if reply.status == 200:
                return steering
    raise RuntimeError(f"no steering for {method} that is served")


def _body(rng: random.Random, fuzzer: RequestFuzzer, steering: dict[str, Any], tokens: int) -> dict[str, Any]:
    return {
        "prompt": fuzzer.prompt(),
        "max_tokens": tokens,
        "seed": rng.randrange(1 << 32),
        "temperature": rng.choice([0, 0.8, 1.2]),
        "top_p": rng.choice([0.9, 1]),
        "steering": steering,
    }


async def _tokens(session: aiohttp.ClientSession, body: dict[str, Any]) -> list[tuple[int, float]]:
    """(id, logprob) of every token of a whole answer. Where steps take long, those who left fill the queue until the
    next one; then it is asked for again."""
    while True:
        async with session.post("/v1/generate", json={**body, "logprobs": True}) as reply:
            document = strict(await reply.read())
        if reply.status == 200:
            return [(token["id"], token["logprob"]) for token in document["choices"][0]["tokens"]]
        if reply.status != 429:
            raise RuntimeError(f"{reply.status}: {document}")
        await asyncio.sleep(min(5.0, float(reply.headers["Retry-After"])))


async def _leave(session: aiohttp.ClientSession, body: dict[str, Any], rng: random.Random) -> str:
    """Begin a request and go away at some moment; when that was."""
    stream = rng.random() < 0.8
    choices = rng.choice([1, 1, 3])
    moment = rng.choice(["at once", "soon", "amid the answer"])
    patience = {"at once": rng.uniform(0, 0.01), "soon": rng.uniform(0, 0.05), "amid the answer": rng.uniform(0, 1.0)}[
        moment
    ]
    request = asyncio.create_task(_read(session, {**body, "stream": stream, "n": choices}))
    await asyncio.wait([request], timeout=patience)
    if request.done():
        return request.result()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    return f"{moment}, {'streamed' if stream else 'whole'}"


async def _read(session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    async with session.post("/v1/generate", json=body) as reply:
        try:
            await reply.read()
        finally:
            reply.close()  # the connection, not only the answer
        return "over before it was left" if reply.status == 200 else f"refused with {reply.status}"


async def run(
    server: ServerUnderTest, count: int, concurrency: int, seed: int, vocabulary: int, methods: Sequence[str] = ()
) -> dict[str, object]:
    """One row: at least ``count`` streams that are left, ``concurrency`` at a time, while others ask for whole answers
    over and over and compare them with what they got when nothing else ran, until there are a tenth as many of these.

    ``methods``: of the requests; all that the family has, if none are given.
    """
    rng = random.Random(seed)
    moments: Counter[str] = Counter()
    compared = 0
    different: list[str] = []
    start = time.monotonic()
    async with session_of(server) as session:
        fuzzer = RequestFuzzer(rng, await family_of(session), vocabulary)
        names = list(methods or fuzzer.methods)
        steerings = [await _served(session, fuzzer, name) for name in names for _ in range(_EACH)]
        witnesses = []
        for _ in range(_WITNESSES):
            body = _body(rng, fuzzer, rng.choice(steerings), 16)
            witnesses.append((body, await _tokens(session, body)))
        before = server.samples()[_CANCELLED]
        left, wanted = count, max(_WATCHING, count // 10)

        async def leaver() -> None:
            nonlocal left
            while (left > 0 or compared < wanted) and server.alive:
                left -= 1
                moments[await _leave(session, _body(rng, fuzzer, rng.choice(steerings), _LONG), rng)] += 1

        leavers = [asyncio.create_task(leaver()) for _ in range(concurrency)]

        async def witness(index: int) -> None:
            nonlocal compared
            while not all(task.done() for task in leavers):
                body, alone = witnesses[index % len(witnesses)]
                tokens = await _tokens(session, body)
                compared += 1
                if tokens != alone:
                    different.append(json.dumps(body))
                index += _WATCHING

        await asyncio.gather(*leavers, *(witness(index) for index in range(_WATCHING)))
    held = server.wait_idle()
    return {
        "run": "streams",
        "seed": seed,
        "count": sum(moments.values()),
        "concurrency": concurrency,
        "seconds": round(time.monotonic() - start, 1),
        "moments": dict(sorted(moments.items())),
        "sequences_cancelled": int(server.samples()[_CANCELLED] - before),
        "answers_compared": compared,
        "answers_different": len(different),
        "first_different": different[:3],
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
