"""A server under mixed load for a while: does it keep its memory and its speed?"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from ladle.benchmarks.faults.memory_watch import MemoryWatch
from ladle.benchmarks.faults.reply_check import WrongReply
from ladle.benchmarks.faults.request_fuzzer import RequestFuzzer
from ladle.benchmarks.faults.request_storm import ask, family_of, session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest


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

    Memory counts once ``warm_minutes`` have passed.
    """
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    memory = MemoryWatch(server)
    end = time.monotonic() + 60 * minutes

    async with session_of(server) as session:
        fuzzer = RequestFuzzer(random.Random(seed), await family_of(session), vocabulary)

        async def client() -> None:
            while time.monotonic() < end and server.alive:
                drawn = fuzzer.draw(sound)
                try:
                    outcomes[await ask(session, drawn, fuzzer.seen)] += 1
                except WrongReply as error:
                    wrong.append(f"{drawn.path} {drawn.body[:2000]!r}: {error}")

        watch = memory.run(lambda: time.monotonic() < end, outcomes.total, min(2.0, 6 * minutes))
        await asyncio.gather(watch, *(client() for _ in range(concurrency)))
    held = server.wait_idle() if server.alive else {"the server has ended": 1.0}
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
        **memory.growth(lambda look: look.minutes >= warm_minutes),
        **memory.by_minute(),
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
