"""One key does its worst while another one asks for short answers: how much later these come."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import aiohttp

from ladle.benchmarks.faults.callers.event_loop import attacks
from ladle.benchmarks.faults.callers.two_keys import TwoKeys
from ladle.benchmarks.faults.request_storm import session_at, session_of
from ladle.server.access.callers import Limits

LIMITS = Limits(concurrent=2, tokens_per_minute=2000)
"""The limits of the hostile key."""
_VIEWS = 31
_QUIET = 20  # answers before the attack
_NICE = 10


async def run(
    keys: TwoKeys, seconds: float, clients: int, seed: int, kind: str, size: int, factor: float
) -> dict[str, object]:
    """One row: the time of a short answer of one token, quiet and under attack.

    Args:
        kind: ``tokenise``: texts with many views, left while they are read; ``neighbours``: those, and what keeps event
            loops, grammar compilers and the engine busy.
        size: bytes of a body.
        factor: times the quiet time that the median under attack may take, and one step more.
    """
    rng = random.Random(seed)
    bodies = [
        (path, body if isinstance(body, bytes) else json.dumps(body).encode())
        for path, body in _bodies(rng, kind, size)
    ]
    start = time.monotonic()
    # Attackers have machines of their own. Here they get a process, and what of this one nobody else wants.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawned, initializer=os.nice, initargs=(_NICE,)) as attackers:
        attackers.submit(time.monotonic).result()  # has begun, and imported what it needs
        async with session_of(keys.server) as session:
            quiet = [await _answer(session, keys, rng) for _ in range(_QUIET)]
            attack = attackers.submit(
                _attack, keys.server.url, keys.hostile, bodies, seconds, clients, rng.randrange(1 << 32)
            )
            await asyncio.sleep(min(1.0, seconds / 4))
            attacked = [await _answer(session, keys, rng)]
            while not attack.done() and keys.server.alive:
                attacked.append(await _answer(session, keys, rng))
                await asyncio.sleep(0.02)
            outcomes = await asyncio.wrap_future(attack)
    held = keys.server.wait_idle()
    samples = keys.server.samples()
    step = samples["ladle_step_seconds_sum", ""] / max(1.0, samples["ladle_step_seconds_count", ""])
    most = factor * statistics.median(quiet) + step
    median = statistics.median(attacked)
    wrong = [f"{1e3 * median:.0f} ms, allowed {1e3 * most:.0f} ms"] if median > most else []
    return {
        "run": kind,
        "seed": seed,
        "clients": clients,
        "seconds": round(time.monotonic() - start, 1),
        "answers": len(attacked),
        "quiet_ms": round(1e3 * statistics.median(quiet), 1),
        "attacked_ms": round(1e3 * median, 1),
        "attacked_p90_ms": round(1e3 * sorted(attacked)[int(0.9 * len(attacked))], 1),
        "attacked_most_ms": round(1e3 * max(attacked), 1),
        "step_ms": round(1e3 * step, 1),
        "outcomes": outcomes,
        "wrong": len(wrong),
        "first_wrong": wrong,
        "tracebacks": len(keys.server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }


def _bodies(rng: random.Random, kind: str, size: int) -> Iterator[tuple[str, Any]]:
    terms = [{"source": "base", "weight": 1}]
    terms += [{"source": "base", "weight": 0.1, "system": f"{n} be kind " * 20} for n in range(_VIEWS)]
    many = {"method": "custom", "terms": terms}
    text = "rain and wind " * 70
    for count in (2, 16, 128):
        prompts = [text] * max(1, min(count, size // len(text)))
        yield "/v1/completions", {"prompt": prompts, "max_tokens": 1, "steering": many}
    yield "/v1/generate", {"prompt": text * max(1, size // len(text)), "max_tokens": 1, "steering": many}
    turns = [{"role": "user", "content": "rain " * 20}] * 10
    yield "/v1/chat/completions", {"messages": turns, "max_tokens": 1, "steering": many}
    yield "/tokenize", {"prompt": text * max(1, size // len(text))}
    if kind == "neighbours":
        prompt = [rng.randrange(3, 250) for _ in range(500)]
        yield "/v1/completions", {"prompt": prompt, "max_tokens": 400, "n": 2}
        for pattern in ("(a|b)*c{1000}", "([a-z]{1,100}){1,100}", "(.*x){50}"):
            yield "/v1/generate", {"prompt": "rain", "max_tokens": 50, "structured_outputs": {"regex": pattern}}
        for _, path, body in attacks(size):
            yield path, body


async def _answer(session: aiohttp.ClientSession, keys: TwoKeys, rng: random.Random) -> float:
    """Seconds of a short answer of one token."""
    body = {"prompt": [rng.randrange(3, 250) for _ in range(8)], "max_tokens": 1, "steering": {"method": "base"}}
    start = time.monotonic()
    async with session.post("/v1/generate", json=body, headers=keys.other) as reply:
        await reply.read()
        if reply.status != 200:
            raise RuntimeError(f"the other key is refused: {reply.status} {await reply.text()}")
    return time.monotonic() - start


def _attack(
    url: str, key: dict[str, str], bodies: list[tuple[str, bytes]], seconds: float, clients: int, seed: int
) -> dict[str, int]:
    """What became of the requests that ``clients`` of the server at ``url`` sent for so long."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def together() -> None:
        async with session_at(url) as session:

            async def attack() -> None:
                while time.monotonic() < until:
                    outcomes[await _send(session, key, rng.choice(bodies), rng.uniform(0.02, 2))] += 1

            await asyncio.gather(*(attack() for _ in range(clients)))

    asyncio.run(together())
    return dict(outcomes)


async def _send(session: aiohttp.ClientSession, key: dict[str, str], drawn: tuple[str, bytes], after_s: float) -> str:
    path, body = drawn
    headers = {**key, "content-type": "application/json"}
    try:
        async with asyncio.timeout(after_s), session.post(path, data=io.BytesIO(body), headers=headers) as reply:
            await reply.read()
            if reply.status == 429:
                with contextlib.suppress(TimeoutError):
                    await asyncio.sleep(0.02)
            return str(reply.status)
    except TimeoutError:
        return "left"
    except aiohttp.ClientError as error:
        return type(error).__name__
