"""What ``ladle sweep`` shows: progress, and the figures as tables."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; what it yields is called with answers done and in all."""
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("sampling", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show(summary: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """The summary on stdout, as tables or as JSON."""
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(highlight=False)
    console.print(_settings(summary))
    if summary["methods"]:
        console.print(_methods(summary))
    for row in summary["differences"]:
        gap = row["hypervolume"]
        console.print(
            f"{row['method']} - {row['minus']}, {row['points']} points: hypervolume {gap['value']:+.3f} "
            f"[{gap['low']:+.3f}, {gap['high']:+.3f}], p {gap['p']:.3g}"
        )
    console.print(f"samples, summary and plots: {out}", style="dim")


def _settings(summary: Mapping[str, Any]) -> Table:
    table = Table(title="mean reward [95 %]", title_justify="left")
    for column in ("method", "weights", *summary["objectives"], "tokens", "perplexity", "distinct-2", "degenerate"):
        table.add_column(column)
    for row in summary["settings"]:
        rewards = [_interval(row[name], "mean") for name in summary["objectives"]]
        weights = " ".join(f"{weight:g}" for weight in row["weights"].values())
        pairs = "" if row["distinct_2"] is None else f"{row['distinct_2']:.3f}"
        perplexity = "" if row["base_perplexity"] is None else f"{row['base_perplexity']:.2f}"
        table.add_row(
            row["method"], weights, *rewards, f"{row['tokens']:.1f}", perplexity, pairs, f"{row['degenerate']:.3f}"
        )
    return table


def _methods(summary: Mapping[str, Any]) -> Table:
    table = Table(title=f"measures, rewards in the base's standard deviations, reference {summary['reference']:g}")
    table.add_column("")
    for method in summary["methods"]:
        table.add_column(method)
    for name in next(iter(summary["methods"].values())):
        table.add_row(name, *(_interval(figures[name], "value") for figures in summary["methods"].values()))
    return table


def _interval(figure: Mapping[str, Any], middle: str) -> str:
    if figure[middle] is None:
        return "-"
    return f"{figure[middle]:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
