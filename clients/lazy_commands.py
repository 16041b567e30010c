"""Commands that other parts of Ladle bring along, found as entry points and imported only when they are run.

So ``ladle --help`` is quick, and works where only the SDK is installed.
"""

import ast
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ladle.clients.display import complain
from ladle.clients.errors import ConnectionError, LadleError

GROUP = "ladle.commands"


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
            missing = (error.name or "").partition(".")[0]
            if missing == "ladle":
                raise
            complain(f"`ladle {self.name}` needs {missing}, which is not installed: pip install 'ladle[server]'")
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
            absent = isinstance(error, ConnectionError) and str(error).startswith("cannot reach")
            complain(f"{error}; start a server with: ladle serve demo" if absent else str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def first_line(entry: EntryPoint) -> str:
    """What a command says about itself, read from its source rather than by running it; "" if there is none."""
    try:
        spec = find_spec(entry.module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    module = ast.parse(Path(spec.origin).read_text())
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == entry.attr)
    docstring = next((ast.get_docstring(node) for node in functions), None) or ast.get_docstring(module) or ""
    return docstring.partition("\n")[0]


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
