"""What the commands share: progress and messages on stderr, results on stdout, errors without tracebacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ladle.merging.exceptions import FamilyError, InputError
from ladle.server.watch.start_error import EngineStopped, StartError

messages = Console(stderr=True, highlight=False, markup=False)

FAILED, MISUSED = 1, 2  # exit codes: it did not work; it was asked for in a way that cannot work


def say(line: str) -> None:
    """One line about what is going on."""
    messages.print(line, markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """A result for programs, on stdout."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def complain(message: str) -> None:
    """An error, on stderr."""
    messages.print(f"error: {message}", markup=False, style="red", soft_wrap=True)


@contextmanager
def clear_errors(tell: Callable[[str], None] = complain) -> Iterator[None]:
    """Turn expected errors into one line and an exit code; anything else is a bug and keeps its traceback. ``tell``
    gets the line."""

    def fail(message: str, code: int) -> None:
        tell(message)
        raise typer.Exit(code)

    try:
        yield
    except InputError as error:
        fail(str(error.at(error.field.removeprefix("steering."))), MISUSED)
    except (FamilyError, StartError, EngineStopped) as error:
        fail(str(error), FAILED)
    except ValidationError as error:
        # A problem of several fields together is at no place and names them itself.
        problems = (
            ": ".join(part for part in (".".join(map(str, problem["loc"])), str(_reason(problem))) if part)
            for problem in error.errors()
        )
        fail("; ".join(problems), MISUSED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED)


def _reason(problem: Mapping[str, Any]) -> object:
    """What a validator of ours said, or pydantic's own words, which leave out the value."""
    own = (problem.get("ctx") or {}).get("error")
    return own or f"{problem['msg']} (got {str(problem['input'])[:100]})"


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A bar; what is yielded is called with (done, total)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were set."""
    return {name: value for name, value in options.items() if value is not None}
