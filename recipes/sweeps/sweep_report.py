"""What ``ladle sweep`` shows: progress, and the figures as tables."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Report = Callable[[int, int], None]


SMALL = 20
"""Prompts below which a sweep's own figures say little."""
_EVERY_S = 60.0


@contextlib.contextmanager
def progress_bar(console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """A bar on stderr, or without a terminal a line a minute with an estimate; what it yields is called with answers
    done and in all."""
    console = console or Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(console, clock)
        return
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("sampling", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """Progress for logs: what is done and how long the rest will take, once a minute and at the end."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._start: tuple[float, int] | None = None
        self._said = -math.inf

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._start is None:
            self._start = now, done  # what an earlier run did took no time of this one's
        began, before = self._start
        if now - self._said < _EVERY_S and done < total:
            return
        self._said = now
        line = f"sampling: {done} of {total} answers"
        if done > before and done < total:
            rest = (now - began) / (done - before) * (total - done)
            line += f", about {_duration(rest)} to go"
        self._console.print(line)


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show(summary: Mapping[str, Any], out: Path, as_json: bool) -> None:
    """The summary on stdout, as tables or as JSON."""
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(highlight=False, markup=False)
    _print(console, "mean reward [95 %]", *_settings(summary))
    if summary["methods"]:
        title = f"measures, rewards in the base's standard deviations, reference {summary['reference']:g}"
        _print(console, title, *_methods(summary))
    for row in summary["differences"]:
        gap = row["hypervolume"]
        console.print(
            f"{row['method']} - {row['minus']}, {row['points']} points: hypervolume {gap['value']:+.3f} "
            f"[{gap['low']:+.3f}, {gap['high']:+.3f}], p {gap['p']:.3g}"
        )
    if summary["prompts"] < SMALL:
        console.print(
            f"note: {summary['prompts']} prompts: below {SMALL}, hypervolumes and orders of methods mean little",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    console.print(f"samples, summary and plots: {out}", style="dim", soft_wrap=True)


Rows = list[list[str]]


def _print(console: Console, title: str, header: list[str], rows: Rows) -> None:
    """A table; where the terminal is too narrow for it, the same as lists, because half a number is none."""
    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
        console.print(table)
        return
    console.print(title, style="italic")
    width = max(map(len, header))
    for row in rows:
        console.print(row[0], style="bold")
        for name, cell in zip(header[1:], row[1:], strict=True):
            console.print(f"  {name:{width}} {cell}", soft_wrap=True)


def _settings(summary: Mapping[str, Any]) -> tuple[list[str], Rows]:
    header = ["setting", *summary["objectives"], "tokens", "perplexity", "distinct-2", "degenerate"]
    rows = []
    for row in summary["settings"]:
        rewards = [_interval(row[name], "mean") for name in summary["objectives"]]
        weights = " ".join(f"{weight:.3g}" for weight in row["weights"].values())
        pairs = "" if row["distinct_2"] is None else f"{row['distinct_2']:.3f}"
        perplexity = "" if row["base_perplexity"] is None else f"{row['base_perplexity']:.2f}"
        figures = [f"{row['tokens']:.1f}", perplexity, pairs, f"{row['degenerate']:.3f}"]
        rows.append([f"{row['method']} {weights}".strip(), *rewards, *figures])
    return header, rows


def _methods(summary: Mapping[str, Any]) -> tuple[list[str], Rows]:
    names = list(next(iter(summary["methods"].values())))
    rows = [[name, *(_interval(figures[name], "value") for figures in summary["methods"].values())] for name in names]
    return ["measure", *summary["methods"]], rows


def _interval(figure: Mapping[str, Any], middle: str) -> str:
    if figure[middle] is None:
        return "-"
    return f"{figure[middle]:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
