"""Concurrent HTTP clients: Ladle with a different preference a client against ``transformers serve``; interleaved.

Both servers run the same base in the same dtype on this machine; requests differ only by the preference. Bursts
alternate between them, and while one serves the other idles.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ladle.benchmarks.decode import preferences
from ladle.merging.family.family import Family
from ladle.recipes.sweeps.server import end

MAX_TOKENS = 48
_TOPICS = ["rain", "bread", "trains", "the sea", "chess", "gardens", "winter", "music", "maps", "bees", "clocks", "tea"]
_START_TIMEOUT_S = 180.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(command: list[str], url: str, log: Path) -> Iterator[None]:
    """Run ``command`` until the block ends; enter when ``url`` answers."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "CI": "1"})
    try:
        until = time.monotonic() + _START_TIMEOUT_S
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}; see {log}")
            try:
                if httpx.get(url, timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if time.monotonic() > until:
                raise RuntimeError(f"{command[0]} did not answer at {url} within {_START_TIMEOUT_S:.0f} s; see {log}")
            time.sleep(0.3)
        yield
    finally:
        end(process, patience_s=20)


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
    ours, theirs = _free_port(), _free_port()
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
    with (
        _server(ladle, f"http://127.0.0.1:{ours}/ready", logs / "ladle-serve.log"),
        _server(peer, f"http://127.0.0.1:{theirs}/health", logs / "transformers-serve.log"),
    ):
        for turn in range(rounds + 1):
            one = asyncio.run(_burst(f"http://127.0.0.1:{ours}/v1/chat/completions", our_bodies, per_client))
            other = asyncio.run(_burst(f"http://127.0.0.1:{theirs}/v1/chat/completions", their_bodies, per_client))
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
