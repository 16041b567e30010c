"""``ladle keys``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ladle.merging.exceptions import InputError
from ladle.server.access.api_keys import ApiKey
from ladle.server.access.callers import GENERATE, Limits
from ladle.server.commands.output import clear_errors, print_json, say


def command(
    name: Annotated[str, typer.Argument(help="Name of the one whom the key is for; logs and messages use it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What the key may do: generate or admin; may be repeated.", show_default=GENERATE),
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Number of answers that may be made at once.", show_default="the server's")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            help="Number of tokens per minute, those of prompts and answers together.", show_default="the server's"
        ),
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read a key that exists from stdin.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print key and line as JSON.")] = False,
) -> None:
    """Make an API key for a server's key file.

    The line for the file goes to stdout and holds a hash of the key. The key itself is shown on stderr, this once, for
    whoever is to use it. A running server reads its file again at SIGHUP.

    Example: ladle keys alice --scope generate --concurrent 8 --tokens-per-minute 60000 >> keys.txt
    """
    with clear_errors():
        limits = Limits(concurrent, tokens_per_minute)
        if stdin:
            key = sys.stdin.read().strip()
            if not key or len(key.split()) > 1:
                raise InputError("key", f"{len(key)} characters", "one word on stdin")
            entry = ApiKey.of(name, key, scope or [GENERATE], limits)
        else:
            key, entry = ApiKey.new(name, scope or [GENERATE], limits)
    if as_json:
        print_json({"name": name, **({} if stdin else {"key": key}), "line": entry.line()})
        return
    if not stdin:
        say(f"the key of {name}, not shown again: {key}")
    typer.echo(entry.line())
