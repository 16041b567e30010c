"""A server under mixed load for a while: does it keep its memory?"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from ladle.benchmarks.faults.memory_watch import MemoryWatch
from ladle.benchmarks.faults.reply_check import WrongReply
from ladle.benchmarks.faults.request_fuzzer import RequestFuzzer
from ladle.benchmarks.faults.request_storm import RESTS, ask, family_of, session_of
from ladle.benchmarks.faults.server_under_test import REST_S, ServerUnderTest


async def run(
    server: ServerUnderTest,
    minutes: float,
    warm_minutes: float,
    concurrency: int,
    seed: int,
    vocabulary: int,
    sound: bool = True,
    rests: int = RESTS,
    rest_s: float = REST_S,
) -> dict[str, object]:
    """One row: requests of the fuzzer of all methods, ``concurrency`` at a time; ``sound`` ones or broken ones too.

    Memory is looked at while the server rests, after ``warm_minutes`` of load and ``rests`` times in the ``minutes``
    that follow: what lies free between two requests comes and goes by some percent. A rest takes ``rest_s`` seconds at
    the most.
    """
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    memory = MemoryWatch(server)

    async with session_of(server) as session:
        fuzzer = RequestFuzzer(random.Random(seed), await family_of(session), vocabulary)

        async def client(end: float) -> None:
            while time.monotonic() < end and server.alive:
                drawn = fuzzer.draw(sound)
                try:
                    outcomes[await ask(session, drawn, fuzzer.seen)] += 1
                except WrongReply as error:
                    wrong.append(f"{drawn.path} {drawn.body[:2000]!r}: {error}")

        for part in [warm_minutes, *[minutes / rests] * rests]:
            end = time.monotonic() + 60 * part
            await asyncio.gather(*(client(end) for _ in range(concurrency)))
            if server.alive:
                await asyncio.to_thread(server.rest, rest_s)
            memory.look(outcomes.total())
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
        **memory.growth(lambda look: look is not memory.looks[0]),
        "resident_at_rest_mb": [round(look.resident / 1e6, 1) for look in memory.looks],
        "requests_at_rest": [look.requests for look in memory.looks],
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
