"""Families that are loaded, loaded anew and unloaded while others merge: no load leaves anything behind that the next
one, or a merge, trips over, and merged answers are what they were."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ladle.benchmarks.faults.request_storm import session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest, serve
from ladle.benchmarks.faults.stress_family import write_full_family
from ladle.server.access.api_keys import ApiKey
from ladle.server.access.callers import ADMIN, GENERATE, NO_LIMITS

FAMILIES = ("first", "second", "third")
_FIXED = 3  # preferences of each family whose answers are compared
_TOKENS = 8
_AWAY = frozenset({"reloading", "no_family", "model_not_found", "busy"})
"""Codes of answers about a family that is just not there, or of a change beside another one."""


@contextmanager
def serving(folder: Path, seed: int) -> Iterator[tuple[ServerUnderTest, str]]:
    """A server that may load three families of full-weight members, with room for a few merges of each, and a key that
    may do everything. ``folder`` gets what it needs."""
    for number, name in enumerate(FAMILIES):
        write_full_family(folder / "families" / name, name, seed % 1000 + number)
    key, entry = ApiKey.new("tester", (GENERATE, ADMIN), NO_LIMITS)
    (folder / "keys").write_text(entry.line() + "\n")
    options = ["--families-dir", str(folder / "families"), "--api-key-file", str(folder / "keys")]
    small = ["--kv-memory", "4MiB", "--weights-memory", "1MiB"]
    with serve(folder / "families" / FAMILIES[0], folder / "server.log", [*options, *small]) as server:
        yield server, key


class _Caller:
    """Requests of one run, and what became of them."""

    def __init__(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.different: list[str] = []
        self._session = session
        self._rng = rng
        self._alone: dict[tuple[str, float], list[tuple[int, float]]] = {}

    async def prepare(self) -> None:
        """Ask for the answers that later ones are compared with."""
        for name in FAMILIES:
            for _ in range(_FIXED):
                weight = round(self._rng.random(), 3)
                answer = await self._merged(name, weight)
                if answer is None:
                    raise RuntimeError(f"{name} does not answer: {self.wrong}")
                self._alone[name, weight] = answer

    async def merge(self) -> None:
        """One answer of merged weights, now and then one that is known already."""
        if self._rng.random() < 0.3:
            (name, weight), alone = self._rng.choice(list(self._alone.items()))
            answer = await self._merged(name, weight)
            if answer is not None and answer != alone:
                self.different.append(f"{name} at {weight}: {answer} was {alone}")
        else:
            await self._merged(self._rng.choice(FAMILIES), round(self._rng.random(), 6))

    async def change(self, name: str) -> None:
        """Load, reload or unload the family ``name``, whichever makes sense."""
        what = self._rng.choice(["reload", "reload", "unload"] if name != FAMILIES[0] else ["reload"])
        await self._admin(f"reload {name}" if what == "reload" else f"unload {name}", f"/families/{name}/{what}", {})
        if what == "unload":
            for _ in range(100):  # the unloaded one may still be ending
                if await self._admin(f"load {name}", "/families", {"family": name}):
                    break
                await asyncio.sleep(0.05)

    async def ready(self) -> None:
        """What an orchestrator asks."""
        try:
            async with self._session.get("/ready") as reply:
                if reply.status != 200:
                    self.wrong.append(f"/ready: {reply.status} {await reply.text()}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.wrong.append(f"/ready: {type(error).__name__}: {error}")

    async def _merged(self, name: str, weight: float) -> list[tuple[int, float]] | None:
        steering = {"method": "rewarded_soup", "preference": {"one": weight, "two": round(1 - weight, 6)}}
        body = {
            "model": name, "prompt": "rain", "max_tokens": _TOKENS, "temperature": 0, "logprobs": True,
            "steering": steering,
        }  # fmt: skip
        status, document = await self._post("/v1/generate", body)
        if status == 200 and document["model"].partition("/")[0] == name:
            self.outcomes["merged"] += 1
            return [(token["id"], round(token["logprob"], 4)) for token in document["choices"][0]["tokens"]]
        self._note("merge", status, document)
        return None

    async def _admin(self, what: str, path: str, body: Mapping[str, Any]) -> bool:
        status, document = await self._post(f"/v1/admin{path}", body)
        if status == 200:
            self.outcomes[what.partition(" ")[0]] += 1
            return True
        self._note(what, status, document)
        return False

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            async with self._session.post(path, json=body) as reply:
                return reply.status, await reply.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            return 0, {"error": {"code": f"{type(error).__name__}: {error}"}}

    def _note(self, what: str, status: int, document: Mapping[str, Any]) -> None:
        code = (document.get("error") or {}).get("code") if status != 200 else "another family"
        if status == 200 or (status in (404, 409, 503) and code in _AWAY):
            self.outcomes[f"{what.partition(' ')[0]}, not there"] += 1
        else:
            self.wrong.append(f"{what}: {status} {document}")


async def run(server: ServerUnderTest, seconds: float, clients: int, seed: int, key: str) -> dict[str, object]:
    """One row: for ``seconds``, ``clients`` ask for answers of ever new merges of three families while an administrator
    changes one family after the other.

    ``key``: an API key that may generate and administer.
    """
    rng = random.Random(seed)
    start = time.monotonic()
    async with session_of(server) as session:
        session.headers["authorization"] = f"Bearer {key}"
        caller = _Caller(session, rng)
        for name in FAMILIES[1:]:
            await caller._admin(f"load {name}", "/families", {"family": name})
        await caller.prepare()
        until = time.monotonic() + seconds

        async def merging() -> None:
            while time.monotonic() < until and server.alive:
                await caller.merge()

        async def changing() -> None:
            for name in itertools.cycle(FAMILIES):
                if time.monotonic() > until or not server.alive:
                    break
                await caller.change(name)
                await caller.ready()

        await asyncio.gather(*(merging() for _ in range(clients)), changing())
        for _ in range(_FIXED * len(FAMILIES)):
            await caller.merge()  # what it can do once all is quiet
        await caller.ready()
    held = server.wait_idle() if server.alive else {"server": 0.0}
    put_back = [line for line in server.log.read_text(errors="replace").splitlines() if "were put back" in line]
    return {
        "run": "loads",
        "seed": seed,
        "clients": clients,
        "seconds": round(time.monotonic() - start, 1),
        "outcomes": dict(sorted(caller.outcomes.items())),
        "wrong": len(caller.wrong) + len(put_back) + (not server.alive),
        "first_wrong": (caller.wrong + put_back)[:3],
        "answers_different": len(caller.different),
        "first_answers_different": caller.different[:3],
        "tracebacks": len(server.failures()),
        "held_at_end": {name: value for name, value in held.items() if value},
    }
