"""Ladle against vLLM's CPU build and llama.cpp, over HTTP, on one machine, in interleaved rounds.

All servers run the same base model, are started once, with as many threads as the machine has cores, and wait stopped
while one of them is measured. So each has the whole machine, and what the machine does over time meets all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.benchmarks.decode import preferences
from ladle.benchmarks.paired import ratio
from ladle.benchmarks.peers import load
from ladle.benchmarks.peers.install import Installed, adapter_of, gguf_of
from ladle.benchmarks.peers.sides import PeerServer, free_port, running
from ladle.merging.family.family import Family

Burst = Callable[[PeerServer, random.Random], Coroutine[Any, Any, dict[str, float]]]
PLAIN, EIGHT, MIXED = ("ladle", "vllm", "llama"), ("ladle int8", "llama q8_0"), ("ladle", "llama")
"""Which sides are compared; the first one is ours."""
_CONTEXT = 8192
_LANES = 16


@dataclass(frozen=True)
class Case:
    """One burst, what it measures, and between whom."""

    name: str
    sides: tuple[str, ...]
    burst: Burst


def cases(long: int = 7800) -> list[Case]:
    """All of them; ``long``: tokens of the longest prompt."""
    every = []
    for count in (1, 4, 16):
        every.append(Case(f"decode, {count} at once", PLAIN, lambda s, r, n=count: load.together(s, n, 64, 64, r)))  # type: ignore[misc]
    for count in (1, 4, 16):
        every.append(Case(f"decode int8, {count} at once", EIGHT, lambda s, r, n=count: load.together(s, n, 64, 64, r)))  # type: ignore[misc]
    for count in (1, 16):
        every.append(Case(f"{count} prompts of 512", PLAIN, lambda s, r, n=count: load.together(s, n, 512, 1, r)))  # type: ignore[misc]
    every.append(Case(f"a context of {long}", PLAIN, lambda s, r: load.together(s, 1, long, 24, r)))
    for count in (8, 16):
        every.append(Case(f"{count} clients", PLAIN, lambda s, r, n=count: load.clients(s, n, 2, 32, 48, r, False)))  # type: ignore[misc]
    every.append(Case("16 clients, 16 mixtures", MIXED, lambda s, r: load.clients(s, 16, 2, 32, 48, r, True)))
    every.append(Case("a prompt of 2000 beside 8 answers", PLAIN, lambda s, r: load.beside(s, 8, 2000, 160, r)))
    return every


def run(
    family: Family, manifest: str, peers: Installed, folder: Path, rounds: int, chosen: str
) -> Iterator[dict[str, object]]:
    """A row a case and a figure: every side's median, and ours over the best of the others, paired by round.

    Args:
        manifest: what ``ladle serve`` is given.
        folder: of converted models and logs.
        chosen: part of the names of the cases to run; empty: all.
    """
    wanted = [case for case in cases() if chosen in case.name]
    names = list(dict.fromkeys(name for case in wanted for name in case.sides))
    with ExitStack() as stack:
        sides: dict[str, PeerServer] = {}
        for name in names:  # one after the other: each would be slow to start beside others that are measured
            sides[name] = stack.enter_context(_started(name, family, manifest, peers, folder))
            sides[name].pause()
        for number, case in enumerate(wanted):
            yield from _rows(case, [sides[name] for name in case.sides], rounds, number)


def _rows(case: Case, sides: Sequence[PeerServer], rounds: int, seed: int) -> Iterator[dict[str, object]]:
    figures: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides:
            side.resume()
            try:
                measured = asyncio.run(case.burst(side, random.Random(1000 * seed + turn)))
            finally:
                side.pause()
            if turn:  # the first round warms up
                figures[side.name].append(measured)
    ours, *others = [side.name for side in sides]
    for figure in figures[ours][0]:
        values = {name: [measured[figure] for measured in rows] for name, rows in figures.items()}
        middle = {name: statistics.median(own) for name, own in values.items()}
        best = (max if figure.endswith("_per_s") else min)(others, key=lambda name: middle[name])
        over, quartiles = ratio(values[ours], values[best])
        yield {
            "case": case.name,
            "figure": figure,
            "rounds": rounds,
            **{name: round(value, 2) for name, value in middle.items()},
            "best other": best,
            "over best": over,
            "quartiles": quartiles,
        }


def _started(name: str, family: Family, manifest: str, peers: Installed, folder: Path) -> Any:
    port, log = free_port(), folder / f"{name.replace(' ', '-')}.log"
    threads = str(os.cpu_count() or 1)
    base = Path(family.base_path)
    if name.startswith("ladle"):
        scripts = Path(sys.executable).parent
        command: list[str | Path] = [scripts / "ladle", "serve", manifest, "--port", str(port)]
        command += ["--quantize", "int8"] if "int8" in name else []
        mixed = preferences(family)
        wishes = [{"steering": {"preference": mixed(row).preference}} for row in range(_LANES)]
        body: dict[str, Any] = {"steering": {"method": "base"}, "repetition_penalty": 1.0}
        return running(name, command, port, log, body, wishes, "/ready")
    if name == "vllm":
        command = [peers.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", base, "--port", str(port)]
        command += ["--dtype", "bfloat16"]
        command += ["--max-model-len", str(_CONTEXT), "--max-num-seqs", str(_LANES)]
        bound = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{int(threads) - 1}"}
        return running(name, command, port, log, {"model": str(base)}, environment=bound)
    models = gguf_of(base, folder, peers)
    command = [peers.llama_server, "--model", models["q8_0" if "q8" in name else "bf16"], "--port", str(port)]
    command += ["--threads", threads, "--parallel", str(_LANES), "--kv-unified", "--ctx-size", str(4 * _CONTEXT)]
    scales: list[Mapping[str, Any]] = []
    if name == "llama":
        # As many adapters as Ladle merges for a preference.
        members = [family.root / backbone.path for backbone in family.manifest.backbones]
        for member in members:
            command += ["--lora", adapter_of(member, base, folder, peers)]
        command += ["--lora-init-without-apply"]
        rng = random.Random(0)
        scales = [
            {"lora": [{"id": index, "scale": round(rng.uniform(-0.5, 1.5), 2)} for index in range(len(members))]}
            for _ in range(_LANES)
        ]
    return running(name, command, port, log, {"cache_prompt": False}, scales)
