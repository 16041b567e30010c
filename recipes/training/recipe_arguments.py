"""The command line of one step of a recipe: which recipe, which family, and where intermediate results are kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ladle.merging.checkpoints.base_checkpoint import default_cache_dir
from ladle.recipes.config import Recipe, load_recipe


def recipe_parser(module: str, description: str, *, out: str | None, example: str = "") -> argparse.ArgumentParser:
    """A parser with ``--config``, ``--work`` and, where the step writes into a family, ``--out``.

    Args:
        module: under ``ladle.recipes``, as `python -m` runs it.
        description: what the step does.
        out: what the folder of the family has, or receives; None for a step that needs no family.
        example: options of the example in the help; those of a step with a family where there are none.
    """
    program = f"python -m ladle.recipes.{module}"
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"example: {program} {example or '--config demo --out families/demo'}",
    )
    parser.add_argument("--config", default="demo", help="a shipped recipe (demo) or a .toml file")
    if out is not None:
        parser.add_argument("--out", type=Path, required=True, help=f"folder of the family{out}")
    parser.add_argument("--work", type=Path, help="folder for intermediate results (default: the user's cache)")
    return parser


def recipe_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *tables: str
) -> tuple[argparse.Namespace, Recipe]:
    """What was given, with ``work`` a folder in any case, and the recipe.

    Args:
        parser: of `recipe_parser`, with the step's own options.
        argv: the arguments; None for those of the process.
        tables: of the recipe, which the step needs.

    Raises:
        SystemExit: an argument is not allowed, or the recipe lacks the first of the tables.
        ValueError: the recipe has a key or a value that is not allowed.
        FileNotFoundError: there is no such recipe.
    """
    arguments = parser.parse_args(argv)
    recipe = load_recipe(arguments.config)
    if tables and getattr(recipe, tables[0]) is None:
        needed = " and ".join(f"[{table}]" for table in tables)
        parser.error(f"--config: {arguments.config!r} is not allowed; allowed: a recipe with {needed}")
    arguments.work = arguments.work or default_cache_dir() / "recipes" / recipe.name
    return arguments, recipe
