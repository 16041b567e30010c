"""Ten times more load than a server can take: what it refuses, how it says so, and whether those that it has accepted
notice."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ladle.benchmarks.faults.request_storm import family_of, session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

_PROMPT_IDS = 24


@dataclass
class Load:
    """What a period of load was like.

    Attributes:
        seconds: how long it was.
        served: requests that were answered.
        tokens: that they were answered with.
        gaps: between the tokens of an answer, in seconds.
        firsts: before the first token of an answer, in seconds.
        waits: after how many seconds refused requests were asked to come back.
        other: statuses of all other replies, and how often each came.
    """

    seconds: float = 0.0
    served: int = 0
    tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Requests served a second."""
        return self.served / self.seconds

    def p99(self) -> float:
        """The 99th percentile of the gaps, in ms."""
        return 1e3 * statistics.quantiles(self.gaps, n=100)[98]


class _Asker:
    """Streams answers of ``tokens`` tokens under random preferences."""

    def __init__(self, session: aiohttp.ClientSession, family: dict[str, Any], rng: random.Random, tokens: int) -> None:
        self._session = session
        self._objectives = family["objectives"]
        self._rng = rng
        self._tokens = tokens

    async def ask(self, load: Load) -> None:
        rng = self._rng
        body = {
            "prompt": [rng.randrange(2, 300) for _ in range(_PROMPT_IDS)],
            "max_tokens": self._tokens,
            "logit_bias": {"1": -100},  # the end of a text: all answers are equally long
            "stream": True,
            "steering": {"method": "bone_soup", "preference": {name: rng.random() + 0.01 for name in self._objectives}},
        }
        start = last = time.perf_counter()
        gaps = []
        first = 0.0
        try:
            async with self._session.post("/v1/generate", json=body) as reply:
                if reply.status == 429:
                    await reply.read()
                    load.waits.append(int(reply.headers["Retry-After"]))
                    return
                async for line in reply.content:
                    now = time.perf_counter()
                    if line.startswith(b'data: {"index"'):
                        if first:
                            gaps.append(now - last)
                        first = first or now - start
                        last = now
                    elif b'"error"' in line:
                        load.other[f"{reply.status} {line[:200]!r}"] += 1
                        return
        except (aiohttp.ClientError, TimeoutError, KeyError) as error:
            load.other[type(error).__name__] += 1
            return
        load.served += 1
        load.tokens += len(gaps) + 1
        load.gaps += gaps
        load.firsts.append(first)


async def _closed(asker: _Asker, clients: int, seconds: float) -> Load:
    """Run as many clients as the server runs sequences; each asks again when it has its answer."""
    load = Load()
    start = time.monotonic()

    async def client() -> None:
        while time.monotonic() < start + seconds:
            await asker.ask(load)

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.monotonic() - start
    return load


async def _open(asker: _Asker, rate: float, seconds: float, rng: random.Random) -> Load:
    """``rate`` requests a second at random moments, whatever becomes of them."""
    load = Load()
    start = time.monotonic()
    due = start
    running: set[asyncio.Task[None]] = set()
    while due < start + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(asker.ask(load))
        running.add(task)
        task.add_done_callback(running.discard)
        due += rng.expovariate(rate)
    load.seconds = time.monotonic() - start
    served = load.served
    await asyncio.gather(*running)
    # What is answered after the last arrival is no part of the rate.
    load.other["served after the end"] = load.served - served
    load.served = served
    return load


async def run(
    server: ServerUnderTest, sequences: int, factor: float, loaded_s: float, overload_s: float, tokens: int, seed: int
) -> dict[str, object]:
    """One row: the server loaded with as many clients as it runs ``sequences``, then with ``factor`` times the requests
    a second that it served then, and loaded once more: what else the machine does changes, and both periods count."""
    rng = random.Random(seed)
    async with session_of(server) as session:
        asker = _Asker(session, await family_of(session), rng, tokens)
        await _closed(asker, sequences, min(5.0, loaded_s))
        loaded = await _closed(asker, sequences, loaded_s)
        over = await _open(asker, factor * loaded.rate, overload_s, rng)
        server.wait_idle()
        after = await _closed(asker, sequences, loaded_s)
    first_rate = loaded.rate
    loaded.seconds += after.seconds
    loaded.served += after.served
    loaded.gaps += after.gaps
    held = server.wait_idle()
    offered = over.served + len(over.waits) + sum(over.other.values())
    return {
        "run": "overload",
        "seed": seed,
        "sequences": sequences,
        "tokens": tokens,
        "loaded_requests_per_s": round(loaded.rate, 2),
        "loaded_before_requests_per_s": round(first_rate, 2),
        "loaded_p50_ms": round(1e3 * statistics.median(loaded.gaps), 1),
        "loaded_p99_ms": round(loaded.p99(), 1),
        "offered_requests_per_s": round(offered / over.seconds, 2),
        "served_requests_per_s": round(over.rate, 2),
        "overload_p50_ms": round(1e3 * statistics.median(over.gaps), 1),
        "overload_p99_ms": round(over.p99(), 1),
        "p99_ratio": round(over.p99() / loaded.p99(), 2),
        "refused": len(over.waits),
        "retry_after_s": dict(sorted(Counter(over.waits).items())),
        "first_token_p50_s": round(statistics.median(over.firsts), 2),
        "first_token_p99_s": round(statistics.quantiles(over.firsts, n=100)[98], 2),
        "other": json.dumps({name: count for name, count in over.other.items() if count}),
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
