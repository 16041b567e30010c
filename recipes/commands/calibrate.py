"""``ladle calibrate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    family: Annotated[str, typer.Argument(help="A built-in family or a family's folder.")],
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep of this family (ladle sweep).")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            help="The method of the sweep to calibrate, as it was written there; without it the first one.",
        ),
    ] = None,
    checked: Annotated[
        Path | None,
        typer.Option(
            "--check", help="Folder of another sweep, of other prompts and preferences, to check the calibration on."
        ),
    ] = None,
    draws: Annotated[int, typer.Option(min=100, help="Number of resamples for the uncertainty of the fit.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Write the calibration even where it explains nothing of a reward.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration and --check as JSON.")] = False,
) -> None:
    """Fit how rewards follow preferences, so that requests may state the reward they want (steering.target).

    Example: ladle sweep FOLDER -m bone_soup --points 4 --out sweep, and then: ladle calibrate FOLDER sweep
    """
    from ladle.guidance.target import reachable
    from ladle.merging.exceptions import FamilyError
    from ladle.merging.family.calibration import CALIBRATION_NAME, calibrated_on
    from ladle.merging.family.manifest import load_manifest
    from ladle.merging.family.measurement_file import write_measured
    from ladle.merging.family.place import find_manifest
    from ladle.recipes.fits.calibrate import check, fit, lines
    from ladle.recipes.fits.regression import require_explained
    from ladle.recipes.sweeps.grid import parse_method
    from ladle.recipes.sweeps.table import table_of

    try:
        file = find_manifest(family)
        manifest = load_manifest(file)
        table, asked = table_of(sweep, manifest)
        chosen = method or table.methods[0]
        fingerprint = calibrated_on(manifest, file.parent, parse_method(chosen)["method"])
        calibration = fit(table, chosen, fingerprint=fingerprint, sampling=asked["sampling"], draws=draws, seed=seed)
        agreements = check(calibration, table_of(checked, manifest)[0]) if checked else {}
        shares = {name: response.explained for name, response in calibration.responses.items()}
        require_explained(shares, manifest.objectives, force)
        kept = write_measured(calibration, file.parent / CALIBRATION_NAME)
    except (ValueError, OSError, FamilyError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    if as_json:
        checks = {"check": {name: asdict(agreement) for name, agreement in agreements.items()}} if checked else {}
        typer.echo(json.dumps(calibration.model_dump(mode="json") | checks, indent=1))
        return
    for line in lines(calibration, reachable(calibration)):
        typer.echo(line)
    for name, agreement in agreements.items():
        typer.echo(
            f"{name}: {agreement.gap:.3f} off on average and {agreement.worst:.3f} at worst over the "
            f"{agreement.points} preferences of {checked}, {agreement.inside} of them within two standard errors"
        )
    typer.echo(f"written to {file.parent / CALIBRATION_NAME}; a running server reads it when it starts again")
    if kept is not None:
        typer.echo(f"the calibration that was there before is {kept}")
