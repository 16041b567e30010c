"""Clients of one server: what they wait for, token by token. The same for every server."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from ladle.benchmarks.peers.sides import PeerServer

_TIMEOUT_S = 300.0
_IDS = (1000, 40_000)
"""Token ids of prompts: words, in every vocabulary of the size that is compared."""


@dataclass(frozen=True)
class TimedStream:
    """When the parts of one answer came, in seconds after it was asked for."""

    times: tuple[float, ...]
    tokens: int

    @property
    def step_ms(self) -> float:
        """Milliseconds a token after the first; a part may hold several tokens or none."""
        return 1e3 * (self.times[-1] - self.times[0]) / max(1, self.tokens - 1)

    @property
    def gaps(self) -> Iterator[float]:
        return (after - before for before, after in zip(self.times, self.times[1:], strict=False))


def prompt_of(length: int, rng: random.Random) -> list[int]:
    """Token ids that no cache has seen."""
    return [rng.randrange(*_IDS) for _ in range(length)]


async def ask(
    session: aiohttp.ClientSession, side: PeerServer, prompt: Sequence[int], tokens: int, extra: Mapping[str, Any]
) -> TimedStream:
    """One answer of exactly ``tokens`` tokens, streamed.

    Raises:
        RuntimeError: the server refused, with what it said.
    """
    body = {
        **side.body, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0.0, "stream": True,
        "ignore_eos": True, **extra,
    }  # fmt: skip
    start = time.perf_counter()
    times: list[float] = []
    async with session.post(side.url + "/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{side.name}: {response.status} {(await response.text())[:500]}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter() - start)
    if not times:
        raise RuntimeError(f"{side.name}: the stream was empty")
    return TimedStream(tuple(times), tokens)


def _session() -> aiohttp.ClientSession:
    # A connection for each request: one that is kept may be closed by a slow server just as it is used again.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        read_bufsize=1 << 20,
    )


async def together(side: PeerServer, count: int, length: int, tokens: int, rng: random.Random) -> dict[str, float]:
    """``count`` prompts of ``length`` tokens at once: ``prompt_tokens_per_s``, and ``step_ms`` of longer answers."""
    async with _session() as session:
        start = time.perf_counter()
        asked = [ask(session, side, prompt_of(length, rng), tokens, {}) for _ in range(count)]
        streams = await asyncio.gather(*asked)
        seconds = time.perf_counter() - start
    if tokens == 1:
        return {"prompt_tokens_per_s": count * length / seconds}
    first = max(stream.times[0] for stream in streams)
    return {
        "step_ms": statistics.median(stream.step_ms for stream in streams),
        "prompt_tokens_per_s": count * length / first,
    }


async def clients(
    side: PeerServer, count: int, turns: int, length: int, tokens: int, rng: random.Random, mixed: bool
) -> dict[str, float]:
    """``count`` clients that ask ``turns`` times in a row; ``mixed``: each with a mixture of members of its own."""

    async def client(session: aiohttp.ClientSession, number: int) -> list[float]:
        extra = side.preference[number % len(side.preference)] if mixed else {}
        prompts = [prompt_of(length, rng) for _ in range(turns)]
        return [(await ask(session, side, prompt, tokens, extra)).times[0] for prompt in prompts]

    async with _session() as session:
        start = time.perf_counter()
        firsts = await asyncio.gather(*(client(session, number) for number in range(count)))
        seconds = time.perf_counter() - start
    return {
        "tokens_per_s": count * turns * tokens / seconds,
        "first_token_ms": 1e3 * statistics.median(first for own in firsts for first in own),
    }


async def beside(side: PeerServer, streams: int, length: int, tokens: int, rng: random.Random) -> dict[str, float]:
    """A prompt of ``length`` tokens that comes amid ``streams`` answers: when its first token comes, and the 99th
    percentile of what the others wait for a token meanwhile, over their median before."""
    async with _session() as session:
        running = [asyncio.create_task(ask(session, side, prompt_of(32, rng), tokens, {})) for _ in range(streams)]
        begun = time.perf_counter()
        await asyncio.sleep(1.5)
        asked = time.perf_counter() - begun
        long = await ask(session, side, prompt_of(length, rng), 1, {})
        others = await asyncio.gather(*running)
    until = asked + long.times[0]
    quiet: list[float] = []
    meanwhile: list[float] = []
    for stream in others:
        for at, gap in zip(stream.times[1:], stream.gaps, strict=True):
            (quiet if at <= asked else meanwhile if at - gap <= until else []).append(gap)
    meanwhile = sorted(meanwhile) or [0.0]
    return {
        "first_token_ms": 1e3 * long.times[0],
        "gap_ratio": meanwhile[int(0.99 * (len(meanwhile) - 1))] / statistics.median(quiet or [1.0]),
    }
