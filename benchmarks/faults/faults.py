"""``ladle bench faults``: what a server does under requests that nobody would send, clients that leave, more load than
it can take, and all of it for a while. Each run ends with exit code 1 when something did not hold."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ladle.benchmarks.faults.server_under_test import ServerUnderTest

faults = typer.Typer(
    no_args_is_help=True,
    help="Generated requests, grammars, cancelled streams, overload, hostile callers and a soak, on the loopback "
    "interface; exit code 1 when something did not hold.",
)

VOCABULARY = 320
"""Tokens that the family knows which is made for these runs."""
MOST_GROWTH = 0.02
"""The share by which the memory of a warm server may grow."""
MOST_DELAYED = 2.0
"""A short answer while another key does its worst, over its quiet time, one step not counted."""
MOST_SLOWER = 1.5
"""The 99th percentile between tokens under overload, over that of a loaded server."""

FamilyOption = Annotated[
    Path | None, typer.Option(help="Folder of a family; default: a random one of two layers and every method.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed of the requests; the same one repeats a run.", show_default="a new one")
]
OutOption = Annotated[
    Path | None, typer.Option(help="CSV file to which a row is added; without it nothing is written.")
]
NoteOption = Annotated[
    str, typer.Option(help="A note that is written beside the figures, for example what else the machine did.")
]


@faults.command(epilog="Example: ladle bench faults requests --warm 10000 --count 10000 --documented 100")
def requests(
    count: Annotated[int, typer.Option(min=5, help="Number of requests that the fuzzer draws.")] = 10_000,
    warm: Annotated[
        int, typer.Option(min=0, help="Number of requests before them; memory is counted from then on.")
    ] = 10_000,
    concurrency: Annotated[int, typer.Option(min=1)] = 16,
    documented: Annotated[int, typer.Option(min=0, help="Number of schemathesis' requests per endpoint, besides.")] = 0,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Generated requests over steering, sampling, form and texts: good, mutated, hostile and broken ones.

    The server's access log must name a reason for every error answer.
    """
    from ladle.benchmarks.faults import documented as schemathesis
    from ladle.benchmarks.faults import request_storm

    seed = _seed(seed)
    options = ("--default-max-tokens", "32", "--max-queue", "1024", "--access-log", "--log-format", "json")
    with _serving(family, *options) as server:
        row = asyncio.run(request_storm.run(server, count, concurrency, seed, VOCABULARY, warm))
        if documented:
            row |= schemathesis.run(server, documented, seed)
            row["held_at_end"] = {name: value for name, value in server.wait_idle().items() if value}
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults streams --count 1000")
def streams(
    count: Annotated[int, typer.Option(min=1, help="Number of streams that are left.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Streams that their clients leave at random moments, beside answers that must not change."""
    from ladle.benchmarks.faults import cancelled_streams

    with _serving(family) as server:
        row = asyncio.run(cancelled_streams.run(server, count, concurrency, _seed(seed), VOCABULARY))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults overload --seconds 120")
def overload(
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the overload phase, in seconds.")] = 120.0,
    loaded_seconds: Annotated[
        float,
        typer.Option(min=1, help="Duration of a load that the server can just take, before the overload, in seconds."),
    ] = 40.0,
    factor: Annotated[float, typer.Option(min=1, help="Requests per second, beyond what the server can serve.")] = 10.0,
    sequences: Annotated[int, typer.Option(min=1, help="Number of sequences that the server runs at once.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="Number of tokens in every answer.")] = 64,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Many times the load that a server can take: refusals, and the pace of the answers it accepted."""
    from ladle.benchmarks.faults import overload as benchmark

    with _serving(family, "--max-sequences", str(sequences), "--max-queue", str(4 * sequences)) as server:
        row = asyncio.run(
            benchmark.run(server, sequences, factor, loaded_seconds, seconds, tokens, _seed(seed)),
        )
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults soak --minutes 12")
def soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="Minutes of load in which memory is counted.")] = 12.0,
    warm_minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of load before that.")] = 8.0,
    concurrency: Annotated[int, typer.Option(min=1)] = 8,
    sound: Annotated[bool, typer.Option("--sound/--broken", help="Draw only requests that make sense.")] = True,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Mixed requests of all methods for a while: memory."""
    from ladle.benchmarks.faults import soak as benchmark

    with _serving(family, "--default-max-tokens", "32") as server:
        row = asyncio.run(benchmark.run(server, minutes, warm_minutes, concurrency, _seed(seed), VOCABULARY, sound))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults loads --seconds 60")
def loads(
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the run, in seconds.")] = 60.0,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask for merged answers all the time.")] = 4,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Families that are loaded, loaded anew and unloaded while merges of three families run."""
    from ladle.benchmarks.faults import concurrent_loads

    seed = _seed(seed)
    with tempfile.TemporaryDirectory() as folder, concurrent_loads.serving(Path(folder), seed) as (server, key):
        row = asyncio.run(concurrent_loads.run(server, seconds, clients, seed, key))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults grammars --count 10000")
def grammars(
    count: Annotated[int, typer.Option(min=5, help="Number of requests.")] = 10_000,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of requests that run at once.")] = 8,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Schemas, regular expressions and texts that try to end or hold up what reads them, beside ordinary ones."""
    from ladle.benchmarks.faults import grammar_storm

    with _serving(family, "--default-max-tokens", "32", "--max-queue", "1024") as server:
        row = asyncio.run(grammar_storm.run(server, count, concurrency, _seed(seed)))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults loop")
def loop(family: FamilyOption = None, note: NoteOption = "", out: OutOption = None) -> None:
    """Requests that are made to keep the event loop busy: for how long each of them does."""
    from ladle.benchmarks.faults.callers import event_loop

    with _serving(family, "--default-max-tokens", "32", "--max-queue", "1024") as server:
        row = asyncio.run(event_loop.run(server))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults tokenise --seconds 30")
def tokenise(
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the attack, in seconds.")] = 30.0,
    clients: Annotated[int, typer.Option(min=1, help="Number of hostile clients.")] = 8,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """Megabytes of text under dozens of prompt views from one key, left while they are read; another key's pace."""
    _report(_attacked("tokenise", family, seconds, clients, _seed(seed)), note, out)


@faults.command(epilog="Example: ladle bench faults neighbours --seconds 60")
def neighbours(
    seconds: Annotated[float, typer.Option(min=1, help="Duration of the attack, in seconds.")] = 60.0,
    clients: Annotated[int, typer.Option(min=1, help="Number of hostile clients.")] = 8,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """All that one key can do to keep others waiting, and how long another key's short answer takes meanwhile."""
    _report(_attacked("neighbours", family, seconds, clients, _seed(seed)), note, out)


@faults.command(epilog="Example: ladle bench faults limits --count 60")
def limits(
    count: Annotated[int, typer.Option(min=1, help="Number of prompts that are sent and left.")] = 60,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """A key that leaves its requests before they are answered: what is computed for it beyond its limit."""
    from ladle.benchmarks.faults.callers import token_limits, two_keys
    from ladle.server.access.callers import Limits

    with two_keys.serving(family, Limits(None, token_limits.PER_MINUTE)) as keys:
        row = asyncio.run(token_limits.run(keys, count, _seed(seed)))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults rebinding")
def rebinding(family: FamilyOption = None, note: NoteOption = "", out: OutOption = None) -> None:
    """What is answered under names that are not the server's."""
    from ladle.benchmarks.faults.callers import foreign_names

    with _serving(family) as server:
        row = asyncio.run(foreign_names.run(server))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults tenants --count 50")
def tenants(
    count: Annotated[int, typer.Option(min=1, help="Number of prompts that another key guesses.")] = 50,
    family: FamilyOption = None,
    seed: SeedOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """One key guesses what another one has sent, by what is reused of it."""
    from ladle.benchmarks.faults.callers import tenants as benchmark
    from ladle.benchmarks.faults.callers import two_keys

    with two_keys.serving(family) as keys:
        row = asyncio.run(benchmark.run(keys, count, _seed(seed)))
    _report(row, note, out)


@faults.command(epilog="Example: ladle bench faults descriptors --connections 600")
def descriptors(
    connections: Annotated[int, typer.Option(min=1, help="Number of connections that are opened at once.")] = 600,
    family: FamilyOption = None,
    note: NoteOption = "",
    out: OutOption = None,
) -> None:
    """More connections than a server has file descriptors for."""
    from ladle.benchmarks.faults.callers import descriptors as benchmark

    with _serving(family) as server:
        row = asyncio.run(benchmark.run(server, connections))
    _report(row, note, out)


def _attacked(kind: str, family: Path | None, seconds: float, clients: int, seed: int) -> dict[str, object]:
    from ladle.benchmarks.faults.callers import neighbours as benchmark
    from ladle.benchmarks.faults.callers import two_keys

    with two_keys.serving(family, benchmark.LIMITS, ("--max-queue", "1024")) as keys:
        return asyncio.run(benchmark.run(keys, seconds, clients, seed, kind, 4 << 20, MOST_DELAYED))


def broken(row: Mapping[str, Any]) -> list[str]:
    """What did not hold in a run."""
    problems = []
    for name in ("wrong", "tracebacks", "unexplained", "answers_different", "documented_wrong", "held_at_end"):
        if row.get(name):
            problems.append(f"{name}: {row.get(f'first_{name}') or row[name]}")
    problems += [
        f"{name}: {row[name]} is more than {MOST_GROWTH}"
        for name in ("resident_growth", "kept_growth")
        if (row.get(name) or 0) > MOST_GROWTH
    ]
    if row["run"] == "overload":
        if row["p99_ratio"] > MOST_SLOWER:
            problems.append(f"p99_ratio: {row['p99_ratio']} is more than {MOST_SLOWER}")
        if not row["refused"] or min(row["retry_after_s"]) < 1:
            problems.append(f"refused: {row['refused']}, to come back after {row['retry_after_s']} s")
    return problems


@contextmanager
def _serving(family: Path | None, *options: str) -> Iterator[ServerUnderTest]:
    from ladle.benchmarks.faults.server_under_test import serve
    from ladle.benchmarks.faults.stress_family import write_stress_family

    with tempfile.TemporaryDirectory() as folder:
        root = family or write_stress_family(Path(folder) / "family")
        small = () if family else ("--kv-memory", "8MiB", "--weights-memory", "8MiB")
        with serve(root, Path(folder) / "server.log", [*small, *options]) as server:
            yield server


def _seed(seed: int | None) -> int:
    return secrets.randbits(32) if seed is None else seed


def _report(row: dict[str, object], note: str, out: Path | None) -> None:
    from ladle.benchmarks.machine import write_csv

    problems = broken(row)
    row |= {"held": not problems, "note": note}
    typer.echo(json.dumps(row, indent=2))
    if out is not None:
        plain = (str, int, float, bool)
        flat = {name: value if isinstance(value, plain) else json.dumps(value) for name, value in row.items()}
        write_csv(out, [flat], append=True)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
