"""``ladle check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ladle.server.commands.output import clear_errors, print_json, say


def command(
    family: Annotated[str, typer.Argument(help="A built-in family, or a folder with family.toml.")],
    cache_dir: Annotated[Path | None, typer.Option(help="Where a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Load a family, verify all of it and print a report. Exit code 0 means that it can be served.

    Example: ladle check demo
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.guidance.check import check_family

        report = check_family(family, cache_dir, progress=say)
        if as_json:
            print_json(report.as_dict())
            return
        console = Console()
        for title, header, rows in report.tables():
            table = Table(title=title, title_justify="left", title_style="bold", show_header=any(header))
            for column in header:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for warning in report.warnings:
            say(f"warning: {warning}")
