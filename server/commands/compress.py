"""``ladle compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ladle.server.commands.output import clear_errors, print_json, progress_bar, say

_WORST = 5  # tensors that are shown


def command(
    family: Annotated[str, typer.Argument(help="A built-in family, a folder with family.toml, or a hub id.")],
    member: Annotated[str, typer.Argument(help="A member that is a full checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet, or be empty.")],
    rank: Annotated[int | None, typer.Option(help="Rank to keep in every linear layer.")] = None,
    energy: Annotated[float | None, typer.Option(help="Share of the squared norm to keep, instead of a rank.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Write nothing when the error is above this.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a full-weight member into a LoRA adapter by truncated SVD, and report what that loses.

    Example: ladle compress ./my-family bone-positive --rank 32 --out adapters/bone-positive-r32
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.merging.errors import InputError
        from ladle.merging.family.family import load_family
        from ladle.merging.merges.compress import compress

        loaded = load_family(family, cache_dir, progress=say)
        if member not in loaded.full:
            known = ", ".join(loaded.full) or "none, for this family has no full-weight members"
            raise InputError("member", member, f"the full-weight members: {known}")
        with progress_bar("compressing") as progress:
            report = compress(
                loaded.full[member],
                loaded.base,
                loaded.architecture,
                out,
                rank=rank,
                energy=energy,
                base_name=loaded.manifest.base.model,
                max_error=max_error,
                progress=progress,
            )
        if as_json:
            print_json({"out": str(out), **report.as_dict()})
            return
        typer.echo(f"{out}: {report.parameters:,} parameters, relative error {report.relative_error:.4f}")
        for tensor in sorted(report.tensors, key=lambda entry: -entry.relative_error)[:_WORST]:
            typer.echo(f"  {tensor.relative_error:.4f}  {tensor.name} (rank {tensor.rank})")
        if report.not_representable:
            lost = len(report.not_representable)
            say(f"warning: {lost} tensors that are no linear weights were lost: {report.lost_share:.2%} of the change")
