"""``ladle compress``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ladle.server.commands.output import clear_errors, print_json, progress_bar, say

_WORST = 5  # tensors that are shown


def command(
    family: Annotated[
        str,
        typer.Argument(
            help="An installed family, a folder with family.toml, or a hub id; with --adapter a base will do."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet, or be empty.")],
    member: Annotated[str | None, typer.Argument(help="A member that is a full checkpoint.")] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Instead of a member: a PEFT adapter of any kind (DoRA, layers trained whole)."
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank to keep in every linear layer.")] = None,
    energy: Annotated[float | None, typer.Option(help="Share of the squared norm to keep, instead of a rank.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Write nothing when the error is above this.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a full-weight member into a LoRA adapter by truncated SVD, and report what that loses.

    Example: ladle compress ./my-family bone-positive --rank 32 --out adapters/bone-positive-r32

    An adapter that cannot be mixed in a forward pass: ladle compress org/base --adapter adapters/dora --rank 32 --out
    adapters/plain
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.merging.checkpoints.new_folder import require_free
        from ladle.merging.exceptions import InputError
        from ladle.merging.family.family import load_family
        from ladle.merging.merges.compress import compress

        if (member is None) == (adapter is None):
            raise InputError("member", member, "the name of a member, or --adapter, one of the two")
        require_free(out)
        with ExitStack() as stack:
            if adapter is not None:
                full, base, architecture, name = _merged(family, adapter, out, cache_dir, stack)
            else:
                loaded = load_family(family, cache_dir, progress=say)
                if member not in loaded.full:
                    known = ", ".join(loaded.full) or "none, for this family has no full-weight members"
                    raise InputError("member", member, f"the full-weight members: {known}")
                full, base, architecture = loaded.full[member], loaded.base, loaded.architecture
                name = loaded.manifest.base.model
            progress = stack.enter_context(progress_bar("compressing"))
            report = compress(
                full,
                base,
                architecture,
                out,
                rank=rank,
                energy=energy,
                base_name=name,
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


def _merged(family: str, adapter: str, out: Path, cache_dir: Path | None, stack: ExitStack) -> tuple[Any, ...]:
    """The adapter as a full member of its base, in a folder that goes with ``stack``; base, architecture and the base's
    name."""
    import torch

    from ladle.merging.checkpoints.architecture import open_weights, read_architecture
    from ladle.merging.checkpoints.member_folder import member_folder
    from ladle.merging.family.base_of import base_of
    from ladle.merging.members.full_member import load_full
    from ladle.merging.members.value_head import find_head
    from ladle.merging.merges.adapter_merge import merge_adapter

    folder, name = base_of(family, cache_dir, say)
    base, architecture = open_weights(folder, read_architecture(folder))
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = Path(stack.enter_context(TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent))) / "whole"
    for note in merge_adapter(folder, member_folder(adapter, Path.cwd(), say), whole, torch.float32):
        say(f"warning: {note}")
    headed = find_head(whole) is not None
    return load_full(whole, "adapter", base, architecture, headed=headed), base, architecture, name
