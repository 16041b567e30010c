"""A server under mixed load for a while: does it keep its memory and its speed?"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter

from ladle.benchmarks.reply_check import WrongReply
from ladle.benchmarks.request_fuzzer import RequestFuzzer
from ladle.benchmarks.request_storm import ask, family_of, session_of
from ladle.benchmarks.server_under_test import ServerUnderTest


async def run(
    server: ServerUnderTest,
    minutes: float,
    warm_minutes: float,
    concurrency: int,
    seed: int,
    vocabulary: int,
    sound: bool = True,
) -> dict[str, object]:
    """One row: requests of the fuzzer of all methods, ``concurrency`` at a time; ``sound`` ones or broken ones too.

    Memory is looked at every few seconds. It rises with the steps and falls when what they freed goes back to the
    system, once a minute, so windows of a third of the time after the warm-up are compared, the first with the last:
    ``resident_growth`` by their medians, ``kept_growth`` by the least that either saw, which is what never went back.
    """
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    seen: list[tuple[float, int, int]] = []
    start = time.monotonic()
    end = start + 60 * minutes

    async with session_of(server) as session:
        fuzzer = RequestFuzzer(random.Random(seed), await family_of(session), vocabulary)

        async def client() -> None:
            while time.monotonic() < end and server.alive:
                drawn = fuzzer.draw(sound)
                try:
                    outcomes[await ask(session, drawn)] += 1
                except WrongReply as error:
                    wrong.append(f"{drawn.path} {drawn.body[:2000]!r}: {error}")

        async def watch() -> None:
            while time.monotonic() < end and server.alive:
                seen.append(((time.monotonic() - start) / 60, server.resident(), sum(outcomes.values())))
                await asyncio.sleep(min(2.0, 6 * minutes))

        await asyncio.gather(watch(), *(client() for _ in range(concurrency)))
    held = server.wait_idle() if server.alive else {"the server has ended": 1.0}
    settled = [size for at, size, _ in seen if at >= warm_minutes] or [seen[-1][1]]
    window = -(-len(settled) // 3)
    warm, last = settled[:window], settled[-window:]
    return {
        "run": "soak",
        "seed": seed,
        "minutes": minutes,
        "warm_minutes": warm_minutes,
        "concurrency": concurrency,
        "sound": sound,
        "count": sum(outcomes.values()) + len(wrong),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
        "outcomes": dict(sorted(outcomes.items())),
        "resident_warm_mb": round(statistics.median(warm) / 1e6, 1),
        "resident_end_mb": round(statistics.median(last) / 1e6, 1),
        "resident_growth": round(statistics.median(last) / statistics.median(warm) - 1, 4),
        "kept_growth": round(min(last) / min(warm) - 1, 4),
        "resident_by_minute_mb": [round(size / 1e6) for at, size, _ in _each_minute(seen)],
        "requests_by_minute": [count for _, _, count in _each_minute(seen)],
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }


def _each_minute(seen: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """The first look of every minute."""
    first: dict[int, tuple[float, int, int]] = {}
    for look in seen:
        first.setdefault(int(look[0]), look)
    return list(first.values())
