"""``ladle train``."""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (demo, quick) or a .toml file.")],
    out: Annotated[
        Path, typer.Option(help="Folder of the family to write: family.toml, adapters, card, measurements.")
    ],
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for the pool and other intermediate results.", show_default="the user's cache"),
    ] = None,
    split: Annotated[str, typer.Option(help="Prompts that are judged: test or validation.")] = "test",
    beta: Annotated[
        float | None, typer.Option(help="Train the backbones for this beta.", show_default="the recipe's")
    ] = None,
    training_seed: Annotated[
        int, typer.Option(min=0, help="Number added to the seeds of initialisation and order.")
    ] = 0,
    oracles: Annotated[
        bool, typer.Option("--oracles", help="Also train the recipe's policies for one preference.")
    ] = False,
    skip_values: Annotated[
        bool, typer.Option("--skip-values", help="Train no explicit values, by which MAGE and others guide.")
    ] = False,
    skip_evaluation: Annotated[
        bool, typer.Option("--skip-evaluation", help="Stop once the members, the manifest and the card are written.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Device to compute on: cpu or cuda.", show_default="cuda where there is one")
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="Number of threads on the CPU; with one, the same recipe gives the same again."),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurements as JSON.")] = False,
) -> None:
    """Train a family from a recipe: backbones, policies and values, with TRL.

    A run that was broken off goes on where it stopped. Several processes share the training of each member: accelerate
    launch --num_processes 2 --no_python ladle train FILE --out FOLDER

    Example: ladle train mine.toml --out mine
    """
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401

    from ladle.merging.checkpoints.base_checkpoint import default_cache_dir
    from ladle.merging.exceptions import FamilyError, InputError
    from ladle.recipes.config import load_recipe
    from ladle.recipes.processes import default_device, processes
    from ladle.recipes.training.train import Workshop, make_family

    started = time.monotonic()
    _quieten()
    try:
        if split not in ("test", "validation"):
            raise ValueError(f"--split: {split!r} is not allowed; allowed: test, validation")
        if device not in (None, "cpu", "cuda") or (device == "cuda" and default_device() != "cuda"):
            allowed = "cpu, cuda" if default_device() == "cuda" else "cpu; there is no GPU that torch can use"
            raise ValueError(f"--device: {device!r} is not allowed; allowed: {allowed}")
        made = load_recipe(recipe).varied(beta, training_seed)
        folder = work or default_cache_dir() / "recipes" / made.name
        workshop = Workshop.open(made, folder, device or default_device(), threads)
        figures = make_family(
            workshop, out, None if skip_evaluation else split, oracles=oracles, explicit=not skip_values
        )
    except (ValueError, OSError, FloatingPointError, FamilyError, InputError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    if not processes().is_main_process:
        return
    if as_json:
        typer.echo(json.dumps(figures))
    else:
        minutes = (time.monotonic() - started) / 60
        typer.echo(f"{out} is made, in {minutes:.1f} minutes; `ladle serve {out}` serves it")


def _quieten() -> None:
    """What the libraries deprecate between themselves, and their bars beside ours, is nothing that a user can mend."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for kind in (FutureWarning, UserWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=kind, module="(transformers|peft|trl|accelerate|torch)[.]")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
