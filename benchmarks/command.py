"""``ladle bench``: each measurement of this folder from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
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
"""Of a table with a column a row; a longer one is written the other way round."""
FamilyOption = Annotated[str, typer.Option(help="Built-in name or a folder with family.toml.")]
OutOption = Annotated[Path | None, typer.Option(help="CSV file to write; without it nothing is written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")]
DTypeOption = Annotated[str, typer.Option(help="Type of the weights: float32 or bfloat16.")]


@command.command(epilog="Example: ladle bench decode --dtype bfloat16 --batches 1,4,16")
def decode(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """A decode step against transformers' own, and with sixteen preferences against the plain base."""
    from ladle.benchmarks import decode as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("decode step", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench guidance --rounds 9 --out guidance.csv")
def guidance(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    loops: Annotated[bool, typer.Option(help="Also run transformers, one model after the other.")] = True,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Guided decode steps against plain ones and against a loop of sequential transformers forwards."""
    from ladle.benchmarks import guidance as benchmark
    from ladle.merging.family.family import load_family

    _report("guided decode step", benchmark.run(load_family(family), dtype, rounds, loops), out, as_json)


@command.command(epilog="Example: ladle bench routing --batches 1,4")
def routing(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,4",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Routed decode steps against plain ones, and both schedules of experts with weights of their own."""
    from ladle.benchmarks import routing as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("routing", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench vectors --batches 1,16")
def vectors(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode steps with another coefficient of a steering vector in every row against plain ones."""
    from ladle.benchmarks import vectors as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("steering vectors", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench forms --batches 1,8")
def forms(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode steps of answers that follow a JSON schema against free ones, and what a grammar takes by itself."""
    from ladle.benchmarks import forms as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("form of answers", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench monitor --batches 1,16")
def monitor(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode steps of answers that a value watches against those that nothing watches."""
    from ladle.benchmarks import monitor as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("watched answers", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench reproducible --batches 1,4,16")
def reproducible(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Steps and prompts of `ladle serve --reproducible` against those of a server without."""
    from ladle.benchmarks import reproducible as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("reproducible", benchmark.run(load_family(family), dtype, sizes, rounds), out, as_json)


@command.command(epilog="Example: ladle bench speculation --batches 1,4,16")
def speculation(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=2)] = 7,
    drafts: Annotated[int, typer.Option(min=1, max=16, help="Tokens drafted in a step, at most.")] = 4,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tokens a second of `ladle serve --speculate ngram:N` against those of a server without."""
    from ladle.benchmarks import speculation as benchmark
    from ladle.merging.family.family import load_family

    sizes = [int(size) for size in batches.split(",")]
    _report("speculation", benchmark.run(load_family(family), dtype, sizes, rounds, drafts), out, as_json)


@command.command(epilog="Example: ladle bench quantized --texts studies/control/test/samples.csv.gz")
def quantized(
    family: FamilyOption = "demo",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=2)] = 9,
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
    sizes = [int(size) for size in batches.split(",")]
    _report("int8 weights", benchmark.run(loaded, sizes, rounds), out, as_json)
    if texts is not None:
        found = benchmark.perplexities(loaded, benchmark.texts_of(texts)[:most])
        rounded: dict[str, object] = {name: round(value, 3) for name, value in found.items()}
        _report("perplexity", [rounded], None, as_json)


@command.command(epilog="Example: ladle bench serve --clients 8")
def serve(
    family: FamilyOption = "demo",
    dtype: DTypeOption = "bfloat16",
    clients: Annotated[int, typer.Option(min=1)] = 8,
    per_client: Annotated[int, typer.Option(min=1, help="Number of requests that each client sends in one burst.")] = 2,
    rounds: Annotated[int, typer.Option(min=2)] = 5,
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
            help="Where the other servers are, or are installed, which takes minutes and a compiler.",
            show_default="~/.cache/ladle/peers",
        ),
    ] = Path.home() / ".cache" / "ladle" / "peers",
    rounds: Annotated[int, typer.Option(min=2)] = 5,
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
    rounds: Annotated[int, typer.Option(min=2)] = 9,
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


def _report(title: str, rows: Iterable[dict[str, object]], out: Path | None, as_json: bool) -> None:
    from ladle.benchmarks.environment import hardware, versions, write_csv

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
