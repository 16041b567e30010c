"""``ladle check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ladle.server.commands.output import clear_errors, print_json, progress_bar, say


def command(
    family: Annotated[str, typer.Argument(help="An installed family, a folder with family.toml, or a hub id.")],
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Run the models, to see whether values merge well and whether what guides fits the base."
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to answer with --deep: a text file with one per line, or .jsonl.",
            show_default="a few neutral ones",
        ),
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Load a family, verify all of it and print a report. Exit code 0 means that it can be served.

    Example: ladle check demo --deep
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.guidance.check import examine_family, report_family
        from ladle.merging.exceptions import InputError
        from ladle.merging.family.family import load_family
        from ladle.server.engine.forward.servable import require_servable

        if prompts is not None and not deep:
            raise InputError("prompts", str(prompts), reason="prompts are read only with --deep")
        loaded = load_family(family, cache_dir, progress=say)
        require_servable(loaded)
        report = report_family(loaded)
        examination = None
        if deep:
            from transformers.utils import logging

            logging.disable_progress_bar()  # of reading weights: there is a bar of ours
            with progress_bar("measuring") as progress:
                examination = examine_family(loaded, prompts, progress)
        if as_json:
            print_json(report.as_dict() | ({} if examination is None else {"deep": examination.as_dict()}))
            return
        console = Console()
        for title, header, rows in report.tables() + ([] if examination is None else examination.tables()):
            table = Table(title=title, title_justify="left", title_style="bold", show_header=any(header))
            for column in header:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))  # no markup: reasons speak of [[models]]
            console.print(table)
        for warning in report.warnings + (() if examination is None else examination.warnings):
            say(f"warning: {warning}")
        count = len(report.warnings) + (0 if examination is None else len(examination.warnings))
        noted = "" if not count else f", with {count} warning{'s' if count > 1 else ''} above"
        Console(highlight=False, markup=False, soft_wrap=True).print(f"{loaded.name} can be served{noted}")
