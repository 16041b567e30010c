"""Whether one key learns what another has sent, by what an answer says was reused or by how soon it comes."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import aiohttp

from ladle.benchmarks.faults.callers.two_keys import TwoKeys
from ladle.benchmarks.faults.request_storm import session_of

_PROMPT = 400  # tokens


async def run(keys: TwoKeys, count: int, seed: int) -> dict[str, object]:
    """One row: ``count`` prompts of one key, each guessed by the other one, beside guesses of what nobody has sent.

    Times are told, not judged: ``cached_tokens`` says all that there is to know of them.
    """
    rng = random.Random(seed)
    wrong = []
    guessed: list[float] = []
    fresh: list[float] = []
    own: list[float] = []
    async with session_of(keys.server) as session:
        for _ in range(count):
            secret, nobody_s = (tuple(rng.randrange(3, 250) for _ in range(_PROMPT)) for _ in range(2))
            salt = rng.choice([None, "one"])
            await _ask(session, keys.other, secret, salt)
            for prompt, times in ((secret, guessed), (nobody_s, fresh)):
                seconds, cached = await _ask(session, keys.hostile, prompt, rng.choice([salt, None, "one"]))
                times.append(seconds)
                if cached:
                    wrong.append(f"{cached} tokens of another key were reused")
            seconds, cached = await _ask(session, keys.other, secret, salt)
            own.append(seconds)
            if not cached:
                wrong.append("nothing of a key's own prompt was reused")
            if (await _ask(session, keys.other, secret, "two"))[1]:
                wrong.append("state was reused under another salt")
    held = keys.server.wait_idle()
    return {
        "run": "tenants",
        "seed": seed,
        "count": count,
        "guessed_ms": round(1e3 * statistics.median(guessed), 1),
        "fresh_ms": round(1e3 * statistics.median(fresh), 1),
        "own_ms": round(1e3 * statistics.median(own), 1),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
        "tracebacks": len(keys.server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }


async def _ask(
    session: aiohttp.ClientSession, key: dict[str, str], prompt: tuple[int, ...], salt: str | None
) -> tuple[float, int]:
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 1, "cache_salt": salt, "steering": {"method": "base"}}
    start = time.monotonic()
    async with session.post("/v1/completions", json=body, headers=key) as reply:
        document = await reply.json()
    seconds = time.monotonic() - start
    return seconds, int(document["usage"]["prompt_tokens_details"]["cached_tokens"])
