"""Commands that other parts of Ladle bring along, found as entry points and imported only when they are run.

So ``ladle --help`` is quick, and works where only the SDK is installed.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ladle.clients.display import complain
from ladle.clients.errors import AuthenticationError, LadleError, UnreachableError

GROUP = "ladle.commands"
_EXTRAS = {"train": "train", "sweep": "sweep", "fit": "sweep", "calibrate": "sweep", "compare": "sweep"}
"""What brings the packages of a command; of all others, ``server``."""


class LazyCommand(TyperCommand):
    """Stands for a command in lists; ``load`` gives the command itself."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(name=entry.name, help=first_line(entry))
        self._entry = entry

    def load(self) -> Any:
        """The command itself.

        Raises:
            typer.Exit: packages it needs are not installed; a message has been printed.
        """
        try:
            target = self._entry.load()
        except ModuleNotFoundError as error:
            explain_missing(self.name, error)
            raise typer.Exit(1) from None
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
            target.command(self.name)(function)
        return typer.main.get_command(target)


class CommandGroup(TyperGroup):
    """The commands of the SDK, then those of the entry points. Errors are told in one line, without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(_entries())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        entry = _entries().get(cmd_name)
        return LazyCommand(entry) if entry else None

    def resolve_command(self, ctx: Any, args: Sequence[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, list(args))
        return name, command.load() if isinstance(command, LazyCommand) else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LadleError as error:
            complain(f"{error}{_way_out(error)}")
            raise typer.Exit(1) from None
        except ModuleNotFoundError as error:  # commands import what is heavy only once they run
            explain_missing(ctx.invoked_subcommand, error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _way_out(error: LadleError) -> str:
    """What to do about ``error``, where that is plain."""
    if isinstance(error, UnreachableError):
        return "; start a server with: ladle serve demo"
    if isinstance(error, AuthenticationError) and error.status == 401:
        return "; give the key with --api-key, or in the variable LADLE_API_KEY"
    return ""


def explain_missing(command: str | None, error: ModuleNotFoundError) -> None:
    """Say which extra brings the missing package; raises the error again if it is not a package that is missing."""
    missing = (error.name or "").partition(".")[0]
    if not missing or missing == "ladle" or missing in sys.modules:
        raise error
    extra = _EXTRAS.get(command or "", "server")
    complain(f"`ladle {command}` needs {missing}, which is not installed: pip install 'ladle[{extra}]'")


def first_line(entry: EntryPoint) -> str:
    """What a command says about itself, read from its source rather than by running it; "" if there is none."""
    try:
        spec = find_spec(entry.module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    module = ast.parse(Path(spec.origin).read_text())
    return next(_descriptions(module, entry.attr), "").partition("\n")[0]


def _descriptions(module: ast.Module, name: str) -> Iterator[str]:
    """The docstring of the function ``name``, the ``help`` of the application ``name``, the module's docstring."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.targets[0]) == name:
            texts = (word.value for word in node.value.keywords if word.arg == "help")
            yield from (text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str))
    yield ast.get_docstring(module) or ""


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
