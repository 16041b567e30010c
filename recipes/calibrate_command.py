"""``ladle calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ladle.merging.manifest import Manifest
    from ladle.recipes.sweep_summary import Table


def command(
    family: Annotated[str, typer.Argument(help="A built-in family or a family's folder.")],
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep of this family (ladle sweep).")],
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help="Which of the sweep's methods, as it was written there; the first one."),
    ] = None,
    checked: Annotated[
        Path | None,
        typer.Option("--check", help="Another sweep, of other prompts and preferences: did it get what is expected?"),
    ] = None,
    draws: Annotated[int, typer.Option(min=100, help="Resamples for the uncertainty of the fit.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON.")] = False,
) -> None:
    """Fit how rewards follow preferences, so that requests may state the reward they want (steering.target).

    Example: ladle sweep trio -m bone_soup --points 4 --out sweep, and then: ladle calibrate trio sweep
    """
    from ladle.guidance.target import reachable
    from ladle.merging.calibration import CALIBRATION_NAME, dump_calibration, fingerprint_of, member_folders
    from ladle.merging.errors import FamilyError
    from ladle.merging.family import find_manifest
    from ladle.merging.manifest import load_manifest
    from ladle.recipes.calibrate import check, fit, lines

    try:
        file = find_manifest(family)
        manifest = load_manifest(file)
        table, asked = _table_of(sweep, manifest)
        calibration = fit(
            table, method or table.methods[0], fingerprint=fingerprint_of(member_folders(manifest, file.parent)),
            sampling=asked["sampling"], draws=draws, seed=seed,
        )  # fmt: skip
        agreements = check(calibration, _table_of(checked, manifest)[0]) if checked else {}
        dump_calibration(calibration, file.parent / CALIBRATION_NAME)
    except (ValueError, OSError, FamilyError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(calibration.model_dump_json(indent=1))
        return
    for line in lines(calibration, reachable(calibration)):
        typer.echo(line)
    for name, found in agreements.items():
        typer.echo(
            f"{name}: {found.gap:.3f} off on average and {found.worst:.3f} at worst over the {found.points} preferences"
            f" of {checked}, {found.inside} of them within two standard errors"
        )
    typer.echo(f"written to {file.parent / CALIBRATION_NAME}; a running server reads it when it starts again")


def _table_of(sweep: Path, manifest: Manifest) -> tuple[Table, dict[str, Any]]:
    """The rewards of a sweep of the family, and what it asked for. Raises ValueError: there is none, or of another."""
    from ladle.recipes.sweep_store import reopen
    from ladle.recipes.sweep_summary import Table

    store, asked, settings = reopen(sweep)
    if asked["family"] != manifest.name or asked["objectives"] != manifest.objectives:
        found = f"it is of {asked['family']!r} with objectives {', '.join(asked['objectives'])}"
        allowed = f"a sweep of {manifest.name!r} with {', '.join(manifest.objectives)}"
        raise ValueError(f"sweep: {str(sweep)!r} is not allowed, {found}; allowed: {allowed}")
    return Table(settings, store.samples, manifest.objectives), asked
