"""``ladle compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    sweeps: Annotated[list[str], typer.Argument(help="Every sweep as FOLDER or NAME=FOLDER; one alone is allowed.")],
    out: Annotated[Path, typer.Option(help="Folder to write the results to.")] = Path("comparison"),
    draws: Annotated[int, typer.Option(min=100, help="Number of resamples for the intervals.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Put finished sweeps side by side: measures, paired differences, plots, and all of it as CSV and Markdown.

    Example: ladle compare plain=sweep-plain seed2=sweep-seed2 --out comparison
    """
    import json

    from ladle.recipes.sweeps.join import join, write_tables
    from ladle.recipes.sweeps.plots import write_plots
    from ladle.recipes.sweeps.summary import RewardTable, summarise
    from ladle.recipes.sweeps.sweep import SUMMARY
    from ladle.recipes.sweeps.sweep_report import show
    from ladle.recipes.sweeps.tables_markdown import methods_table, settings_table

    try:
        named = [(name if equals else "", Path(folder if equals else name)) for name, equals, folder in
                 (text.partition("=") for text in sweeps)]  # fmt: skip
        objectives, settings, samples = join(named)
        summary = summarise(RewardTable(settings, samples, objectives), draws, seed)
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_tables(summary, out)
        tables = [methods_table(summary), settings_table(summary)]
        (out / "tables.md").write_text("\n".join(tables), encoding="utf-8")
        write_plots(summary, out)
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    show(summary, out, as_json)
