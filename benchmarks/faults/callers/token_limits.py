"""A caller who leaves before it is charged: how much is computed for it beyond its tokens per minute."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import aiohttp

from ladle.benchmarks.faults.callers.two_keys import TwoKeys
from ladle.benchmarks.faults.request_storm import session_of

PER_MINUTE = 2000
"""The limit of the hostile key."""
_PROMPT = 400  # tokens
_GUIDANCES: tuple[dict[str, Any], ...] = (
    {"method": "base"},
    {"method": "cfg", "negative_prompt": "dull " * 20, "strength": 1.5},
    {"preference": {"one": 1}, "trace": True},
)


async def run(keys: TwoKeys, count: int, seed: int) -> dict[str, object]:
    """One row: ``count`` prompts are sent and left soon after, one after the other, and it is asked what the engine
    computed. A key may begin a request while it has anything left, so that it may owe one; nothing else."""
    rng = random.Random(seed)
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    most_at_once = 0
    async with session_of(keys.server) as session:
        before = _rows(keys)
        for _ in range(count):
            steering = rng.choice(_GUIDANCES)
            body = {
                "prompt": [rng.randrange(3, 250) for _ in range(_PROMPT)], "max_tokens": 200, "stream": True,
                "steering": steering,
            }  # fmt: skip
            most_at_once = max(most_at_once, 3 * (_PROMPT + 200))
            outcomes[await _leave(session, keys, body, rng.uniform(0, 0.3))] += 1
        keys.server.wait_idle()
        computed = _rows(keys) - before
    seconds = time.monotonic() - start
    allowed = PER_MINUTE * (1 + seconds / 60) + most_at_once
    wrong = [f"{computed:.0f} tokens computed, {allowed:.0f} allowed"] if computed > allowed else []
    if not outcomes["tokens_per_minute"]:
        wrong.append(f"the key was never refused: {dict(outcomes)}")
    held = keys.server.wait_idle()
    return {
        "run": "limits",
        "seed": seed,
        "count": count,
        "seconds": round(seconds, 1),
        "tokens_computed": int(computed),
        "tokens_allowed": int(allowed),
        "outcomes": dict(outcomes),
        "wrong": len(wrong),
        "first_wrong": wrong,
        "tracebacks": len(keys.server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }


def _rows(keys: TwoKeys) -> float:
    """Rows of all steps so far: tokens of all lanes."""
    return keys.server.samples()["ladle_step_rows_sum", ""]


async def _leave(session: aiohttp.ClientSession, keys: TwoKeys, body: dict[str, Any], after_s: float) -> str:
    try:
        async with asyncio.timeout(30), session.post("/v1/generate", json=body, headers=keys.hostile) as reply:
            if reply.status != 200:
                return str((await reply.json())["error"]["code"])
            await asyncio.sleep(after_s)
            reply.close()
            return "left"
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
