"""``ladle init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ladle.server.commands.output import clear_errors, print_json, say

_NAMED = "OBJECTIVE=FOLDER"


def _places(incomplete: str) -> list[str]:
    """Folders that ``incomplete`` may become; behind ``NAME=`` too."""
    name, separator, start = incomplete.rpartition("=")
    head, _, tail = start.rpartition("/")
    where = Path(f"{head}/" if start.startswith("/") else head or ".").expanduser()
    try:
        folders = [path.name for path in where.iterdir() if path.is_dir()]
    except OSError:
        return []
    prefix = name + separator + (f"{head}/" if "/" in start else "")
    return sorted(prefix + folder for folder in folders if folder.startswith(tail))


def command(
    base: Annotated[str, typer.Argument(help="The base: a folder, a GGUF file, or a hub id.", autocompletion=_places)],
    backbone: Annotated[
        list[str] | None,
        typer.Option(metavar=_NAMED, help="A policy trained on a mix of rewards; repeatable.", autocompletion=_places),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar=_NAMED, help="A policy trained on one reward; repeatable.", autocompletion=_places),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(metavar=_NAMED, help="A reward model or an implicit value; repeatable.", autocompletion=_places),
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="An expert for the router; repeatable.", autocompletion=_places),
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The router of the experts.", autocompletion=_places),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="A model of another size, which values, experts and the router may be grown from; repeatable.",
            autocompletion=_places,
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An objective, in order; repeatable.", show_default="those of the members"),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Share of its own reward in every backbone's mix, as it was trained.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the family.", show_default="the folder's")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write family.toml to.")] = Path("."),
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Write family.toml from a base and its members.

    What cannot be served is refused, and nothing is written. Says which methods can be served, and what others would
    need. Members may be hub ids too. An expert may be a further model as it is: --model small=FOLDER --expert
    math=small.

    Example: ladle init org/base --policy kind=adapters/kind --policy short=org/short-lora
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.guidance.check import report_family
        from ladle.merging.exceptions import InputError
        from ladle.merging.family.draft import Draft, draft_manifest
        from ladle.merging.family.family import load_family
        from ladle.merging.family.place import MANIFEST_NAME
        from ladle.server.engine.forward.servable import require_servable

        kinds = {"model": model, "backbone": backbone, "policy": policy, "value": value, "expert": expert}
        members = [Draft.parse(kind, text) for kind, texts in kinds.items() for text in texts or ()]
        if router is not None:
            members.append(Draft("router", "router", router))
        file = out / MANIFEST_NAME
        if file.exists():
            raise InputError("out", str(out), f"a folder without a {MANIFEST_NAME}; this one has one already")
        called = out.resolve().name if name is None else name
        text = draft_manifest(called, base, members, out, objective or (), beta, say, cache_dir)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written = False
        try:
            loaded = load_family(out, cache_dir, progress=say)
            require_servable(loaded)
            report = report_family(loaded)
            written = True
        finally:
            if not written:
                file.unlink()  # what cannot be served is no family
        served = [method for method, (ready, _) in report.methods.items() if ready]
        missing = {method: reason for method, (ready, reason) in report.methods.items() if not ready}
        if as_json:
            print_json({"file": str(file), "manifest": text, "served": served, "missing": missing,
                        "default_method": report.default_method, "warnings": list(report.warnings)})  # fmt: skip
            return
        typer.echo(text)
        typer.echo(f"{file} is written; `ladle serve {out}` serves it with these methods: {', '.join(served)}")
        typer.echo("What others would need:")
        for method, reason in missing.items():
            typer.echo(f"  {method}: {reason}")
        for warning in report.warnings:
            say(f"warning: {warning}")
