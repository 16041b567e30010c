"""Concurrent HTTP clients: Ladle with a different preference a client against ``transformers serve``; interleaved.

Both servers run the same base in the same dtype on this machine; requests differ only by the preference. Bursts
alternate between them, and while one serves the other is stopped.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from ladle.benchmarks.decode import preferences
from ladle.benchmarks.peers.sides import free_port, running
from ladle.merging.family.family import Family

MAX_TOKENS = 48
_TOPICS = ["rain", "bread", "trains", "the sea", "chess", "gardens", "winter", "music", "maps", "bees", "clocks", "tea"]


async def _burst(url: str, bodies: list[dict[str, Any]], per_client: int) -> dict[str, float]:
    """Every body is one client that asks ``per_client`` times in a row, streaming. Seconds and tokens of the burst."""
    tokens = 0
    firsts: list[float] = []

    async def client(session: httpx.AsyncClient, body: dict[str, Any], number: int) -> None:
        nonlocal tokens
        for turn in range(per_client):
            topic = _TOPICS[(number * per_client + turn) % len(_TOPICS)]
            messages = [{"role": "user", "content": f"Tell me about {topic}."}]
            start = time.perf_counter()
            first = None
            async with session.stream("POST", url, json={**body, "messages": messages}) as response:
                if response.status_code != 200:
                    raise RuntimeError(f"{url}: {response.status_code} {(await response.aread())[:500]!r}")
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    if '"content":"' in line.replace('": "', '":"').replace('"content":""', ""):
                        tokens += 1
                        first = first or time.perf_counter() - start
            firsts.append(first if first is not None else time.perf_counter() - start)

    start = time.perf_counter()
    async with httpx.AsyncClient(timeout=120) as session:
        await asyncio.gather(*(client(session, body, number) for number, body in enumerate(bodies)))
    seconds = time.perf_counter() - start
    return {
        "requests_per_s": len(bodies) * per_client / seconds,
        "chunks_per_s": tokens / seconds,
        "first_token_s": statistics.median(firsts),
    }


def run(
    family: Family, manifest: str, dtype: str, clients: int, per_client: int, rounds: int, logs: Path
) -> Iterator[dict[str, object]]:
    """One row: medians of both sides over ``rounds`` bursts, and the ratio of text chunks a second burst by burst."""
    ours, theirs = free_port(), free_port()
    scripts = Path(sys.executable).parent
    ladle = [str(scripts / "ladle"), "serve", manifest, "--port", str(ours), "--dtype", dtype]
    peer_binary = shutil.which("transformers", path=str(scripts))
    if peer_binary is None:
        raise RuntimeError("the peer is not installed: pip install 'transformers[serving]'")
    peer = [peer_binary, "serve", str(family.base_path), "--continuous-batching", "--port", str(theirs)]
    peer += ["--dtype", dtype, "--device", "cpu"]
    common = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "stream": True}
    mixed = preferences(family)
    # The peer has no penalty; a family may have one by default.
    ours_alone = {**common, "model": family.name, "repetition_penalty": 1.0}
    our_bodies = [{**ours_alone, "steering": {"preference": mixed(n).preference}} for n in range(clients)]
    their_bodies = [{**common, "model": str(family.base_path)} for _ in range(clients)]
    results: dict[str, list[dict[str, float]]] = {"ladle": [], "transformers": []}
    quiet = {"CI": "1"}
    with (
        running("ladle", ladle, ours, logs / "ladle-serve.log", {}, health="/ready", environment=quiet) as left,
        running("transformers", peer, theirs, logs / "transformers-serve.log", {}, environment=quiet) as right,
    ):
        right.pause()
        for turn in range(rounds + 1):
            one = asyncio.run(_burst(f"{left.url}/v1/chat/completions", our_bodies, per_client))
            left.pause()
            right.resume()
            other = asyncio.run(_burst(f"{right.url}/v1/chat/completions", their_bodies, per_client))
            right.pause()
            left.resume()
            if turn:
                results["ladle"].append(one)
                results["transformers"].append(other)
    median = {
        name: {key: statistics.median(burst[key] for burst in bursts) for key in bursts[0]}
        for name, bursts in results.items()
    }
    pairs = zip(results["ladle"], results["transformers"], strict=True)
    # Answers under preferences differ in length from the peer's, so the work done is compared by text chunks a second.
    ratios = sorted(a["chunks_per_s"] / b["chunks_per_s"] for a, b in pairs)
    yield {
        "dtype": dtype,
        "clients": clients,
        "requests_a_burst": clients * per_client,
        "rounds": rounds,
        **{f"{name}_{key}": round(value, 3) for name, values in median.items() for key, value in values.items()},
        "chunks_ratio": round(statistics.median(ratios), 2),
        "chunks_ratio_range": f"{ratios[0]:.2f}-{ratios[-1]:.2f}",
    }
