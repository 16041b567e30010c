"""``ladle fit``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def command(
    family: Annotated[str, typer.Argument(help="A built-in family or a family's folder.")],
    sweeps: Annotated[list[Path], typer.Argument(help="Folders of sweeps of this family (ladle sweep).")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="A method of the sweeps to fit, as it was written there; may be repeated.",
            show_default="all that merge weights alone",
        ),
    ] = None,
    perplexity: Annotated[
        float,
        typer.Option(min=1.0, help="How many times as perplexing as its own answers an answer may be to the base."),
    ] = 1.3,
    order: Annotated[
        float,
        typer.Option(
            min=0.0, help="How much the search weighs that rewards keep the order of their weights; 0 leaves it out."
        ),
    ] = 0.3,
    force: Annotated[
        bool, typer.Option("--force", help="Write the surface even where it explains nothing of a reward.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the fit as JSON.")] = False,
) -> None:
    """Fit how rewards follow merge coefficients, so that method fitted_soup can choose the best ones.

    Example: ladle sweep FOLDER -m bone_soup -m bone_soup:strength=1.5 --split validation --prompts varied --out sweep,
    and then: ladle fit FOLDER sweep
    """  # fmt: skip
    import numpy as np

    from ladle.merging.exceptions import FamilyError
    from ladle.merging.family.manifest import load_manifest
    from ladle.merging.family.measurement_file import write_measured
    from ladle.merging.family.place import find_manifest
    from ladle.merging.family.surface import SURFACE_NAME
    from ladle.merging.preferences.simplex import grid
    from ladle.recipes.fits.fit import choose, fit_surface, lines, measurements
    from ladle.recipes.fits.regression import require_explained
    from ladle.recipes.sweeps.table import table_of

    try:
        file = find_manifest(family)
        manifest = load_manifest(file)
        tables = [table_of(sweep, manifest) for sweep in sweeps]
        chosen = choose([table for table, _ in tables], methods)
        own = np.concatenate([table.base_rewards for table, _ in tables])
        points, sampling = [], tables[0][1]["sampling"]
        for sweep, (table, asked) in zip(sweeps, tables, strict=True):
            if asked["sampling"] != sampling:
                allowed = f"{sampling}, as in {sweeps[0]}"
                raise ValueError(f"sampling: {asked['sampling']} is not allowed; allowed: {allowed}")
            if not set(asked["settings"]) <= asked.get("coefficients", {}).keys():
                raise ValueError(f"sweep: {str(sweep)!r} is not allowed; allowed: one that says what was merged in it")
            points += measurements(table, asked["coefficients"], chosen, own)
        bounds = {"most_surprise": math.log(perplexity), "order": order}
        surface = fit_surface(points, manifest, file.parent, **bounds, sampling=sampling)
        require_explained(surface.explained, manifest.objectives, force)
        kept = write_measured(surface, file.parent / SURFACE_NAME)
    except (ValueError, OSError, FamilyError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(surface.model_dump_json(indent=1))
        return
    for line in lines(surface, grid(len(surface.rewards), 3)):
        typer.echo(line)
    typer.echo(f"written to {file.parent / SURFACE_NAME}; a running server reads it when it starts again")
    if kept is not None:
        typer.echo(f"the surface that was there before is {kept}")
