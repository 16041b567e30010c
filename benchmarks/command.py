"""``ladle bench``: each measurement of this folder from the command line."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ladle.benchmarks.faults.faults import faults

command = typer.Typer(
    no_args_is_help=True,
    help="Measure this machine: decode steps, guidance, routing, forms of answers, HTTP serving, merges, faults.",
)
command.add_typer(faults, name="faults")

_MOST_COLUMNS = 6
"""The most rows of a table that is written with a column per row; a longer one is written the other way round."""
FamilyOption = Annotated[str, typer.Option(help="Built-in name or a folder with family.toml.")]
OutOption = Annotated[Path | None, typer.Option(help="CSV file to write; without it nothing is written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")]
DTypeOption = Annotated[str, typer.Option(help="Type of the weights: float32 or bfloat16.")]
BatchesOption = Annotated[str, typer.Option(help="Batch sizes, with commas between them.")]
RoundsOption = Annotated[int, typer.Option(min=2, help="Number of turns that each side has, after one to warm up.")]


@dataclass(frozen=True)
class StepBenchmark:
    """A module of this folder that compares steps by batch size, as a command of its name.

    Attributes:
        title: above the table.
        batches: the sizes that it takes by itself.
        help: what the command says of itself.
    """

    title: str
    batches: str
    help: str
    module: str = ""
    function: str = "run"


STEP_BENCHMARKS = {
    "decode": StepBenchmark(
        "decode step",
        "1,4,16",
        "A decode step against transformers' own, and with sixteen preferences against the plain base.",
    ),
    "routing": StepBenchmark(
        "routing",
        "1,4",
        "Routed decode steps against plain ones, and both schedules of experts with weights of their own.",
    ),
    "vectors": StepBenchmark(
        "steering vectors",
        "1,16",
        "Decode steps with another coefficient of a steering vector in every row against plain ones.",
    ),
    "forms": StepBenchmark(
        "form of answers",
        "1,8",
        "Decode steps of answers that follow a JSON schema against free ones, and what a grammar takes by itself.",
    ),
    "monitor": StepBenchmark(
        "watched answers",
        "1,16",
        "Decode steps of answers that a value watches against those that nothing watches.",
    ),
    "rank": StepBenchmark(
        "ranked answers",
        "1,4",
        "Requests whose eight answers are ranked, in each way that the family has, against those whose are not.",
        "led.several",
        "rank",
    ),
    "search": StepBenchmark(
        "searched answers",
        "1,4",
        "Requests whose answers are searched, in several ways, against those whose are drawn once.",
        "led.several",
        "search",
    ),
    "reproducible": StepBenchmark(
        "reproducible",
        "1,4,16",
        "Steps and prompts of `ladle serve --reproducible` against those of a server without.",
    ),
}
"""The benchmarks by name. A ``module``, of the same name unless another is stated, has a
``function(family, dtype, batches, rounds)``, which gives rows of results."""


def _add_step_benchmark(name: str, benchmark: StepBenchmark) -> None:
    @command.command(name, help=benchmark.help, epilog=f"Example: ladle bench {name} --batches {benchmark.batches}")
    def measure(
        family: FamilyOption = "demo",
        dtype: DTypeOption = "bfloat16",
        batches: BatchesOption = benchmark.batches,
        rounds: RoundsOption = 9,
        out: OutOption = None,
        as_json: JsonOption = False,
    ) -> None:
        from ladle.merging.family.family import load_family

        run = getattr(importlib.import_module(f"ladle.benchmarks.{benchmark.module or name}"), benchmark.function)
        _report(benchmark.title, run(load_family(family), dtype, _sizes(batches), rounds), out, as_json)


for _name, _benchmark in STEP_BENCHMARKS.items():
    _add_step_benchmark(_name, _benchmark)


@command.command(epilog="Example: ladle bench guidance --rounds 9 --out guidance.csv")
def guidance(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: BatchesOption = "1,16",
    rounds: RoundsOption = 9,
    loops: Annotated[bool, typer.Option(help="Also run transformers, one model after the other.")] = True,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Guided decode steps against plain ones and against a loop of sequential transformers forwards."""
    from ladle.benchmarks import guidance as benchmark
    from ladle.merging.family.family import load_family

    sizes = _sizes(batches)
    _report("guided decode step", benchmark.run(load_family(family), dtype, sizes, rounds, loops), out, as_json)


@command.command(epilog="Example: ladle bench speculation --batches 1,4,16")
def speculation(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: BatchesOption = "1,4,16",
    rounds: RoundsOption = 7,
    drafts: Annotated[int, typer.Option(min=1, max=16, help="Tokens drafted in a step, at most.")] = 4,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tokens a second of `ladle serve --speculate ngram:N`, `model:N` and both against those of a server without."""
    from ladle.benchmarks import speculation as benchmark
    from ladle.merging.family.family import load_family

    sizes = _sizes(batches)
    _report("speculation", benchmark.run(load_family(family), dtype, sizes, rounds, drafts), out, as_json)


@command.command(epilog="Example: ladle bench quantized --texts studies/control/test/samples.csv.gz")
def quantized(
    family: FamilyOption = "demo",
    batches: BatchesOption = "1,4,16",
    rounds: RoundsOption = 9,
    texts: Annotated[
        Path | None, typer.Option(help="File of samples whose perplexity is compared; default: none is.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many of the texts are read.")] = 200,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps and perplexity with int8 weights against those with bfloat16 weights."""
    from ladle.benchmarks import quantized as benchmark
    from ladle.merging.family.family import load_family

    loaded = load_family(family)
    sizes = _sizes(batches)
    _report("int8 weights", benchmark.run(loaded, sizes, rounds), out, as_json)
    if texts is not None:
        perplexities = benchmark.perplexities(loaded, benchmark.texts_of(texts)[:most])
        rounded: dict[str, object] = {name: round(value, 3) for name, value in perplexities.items()}
        _report("perplexity", [rounded], None, as_json)


@command.command(epilog="Example: ladle bench serve --clients 8")
def serve(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    clients: Annotated[int, typer.Option(min=1)] = 8,
    per_client: Annotated[int, typer.Option(min=1, help="Number of requests that each client sends in one burst.")] = 2,
    rounds: RoundsOption = 5,
    logs: Annotated[Path, typer.Option(help="Folder for the servers' logs.")] = Path("/tmp"),
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Concurrent HTTP clients against ``transformers serve --continuous-batching``."""
    from ladle.benchmarks import serve as benchmark
    from ladle.merging.family.family import load_family

    rows = benchmark.run(load_family(family), family, dtype, clients, per_client, rounds, logs)
    _report("HTTP serving", rows, out, as_json)


@command.command(epilog="Example: ladle bench peers --only decode --out peers.csv")
def peers(
    family: FamilyOption = "demo",
    folder: Annotated[
        Path,
        typer.Option(
            help="Folder in which the other servers are, or are installed, which takes minutes and a compiler.",
            show_default="~/.cache/ladle/peers",
        ),
    ] = Path.home() / ".cache" / "ladle" / "peers",
    rounds: RoundsOption = 5,
    only: Annotated[str, typer.Option(help="Part of the names of the cases to run; default: all.")] = "",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps, prompts, long contexts and many clients over HTTP, against vLLM's CPU build and llama.cpp."""
    from ladle.benchmarks.peers import peers as benchmark
    from ladle.benchmarks.peers.install import install
    from ladle.merging.family.family import load_family

    rows = benchmark.run(load_family(family), family, install(folder), folder, rounds, only)
    _report("servers", rows, out, as_json)


@command.command(epilog="Example: ladle bench merge --dtype float32")
def merge(
    dtype: DTypeOption = "float32",
    rounds: RoundsOption = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """A merge of three full 135 M members against the memory floor."""
    import torch

    from ladle.benchmarks import merge as benchmark

    _report("merge", benchmark.run(getattr(torch, dtype), rounds), out, as_json)


@command.command(epilog="Example: ladle bench architectures --out docs/architectures.md")
def architectures(
    kinds: Annotated[list[str] | None, typer.Argument(help="Model types; default: all that transformers has.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write; without it nothing is written.")] = None,
) -> None:
    """Every causal language model of transformers, tiny: served equally, or refused by check. Exit code 1 when one is
    neither."""
    import importlib.metadata
    import tempfile

    from transformers.utils import logging

    from ladle.benchmarks import architectures as benchmark

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for outcome in benchmark.survey(Path(folder), seed, frozenset(kinds or ())):
            print(f"{outcome.kind}: {outcome.outcome} {outcome.reason}".rstrip(), flush=True)
            outcomes.append(outcome)
    if out is not None:
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "peft", "torch")}
        out.write_text(benchmark.table(outcomes, versions), encoding="utf-8")
    wrong = [outcome.kind for outcome in outcomes if outcome.outcome == "wrong"]
    if wrong:
        typer.echo(f"error: passed check and not served equally: {', '.join(wrong)}", err=True)
        raise typer.Exit(1)


def _sizes(batches: str) -> list[int]:
    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise typer.BadParameter(f"{batches!r} is not allowed; allowed: numbers from 1 on, with commas between them")
    return sizes


def _report(title: str, rows: Iterable[dict[str, object]], out: Path | None, as_json: bool) -> None:
    from ladle.benchmarks.machine import hardware, versions, write_csv

    console = Console()
    if as_json:
        done = []
        for row in rows:
            print(json.dumps(row), flush=True)
            done.append(row)
    else:
        with console.status(f"measuring {title}"):
            done = list(rows)
        table = Table(title=title, caption=f"{hardware()}; {versions()}")
        names = list(dict.fromkeys(name for row in done for name in row))
        if len(done) > _MOST_COLUMNS:
            for name in names:
                table.add_column(name)
            for row in done:
                table.add_row(*(str(row.get(name, "")) for name in names))
        else:
            table.add_column("")
            for number in range(len(done)):
                table.add_column(str(number + 1), justify="right")
            for name in names:
                table.add_row(name, *(str(row.get(name, "")) for row in done))
        console.print(table)
    if out is not None:
        write_csv(out, done)
