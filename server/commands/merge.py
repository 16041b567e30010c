"""``ladle merge``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ladle.server.commands.name_values import parse_pairs
from ladle.server.commands.output import clear_errors, given, print_json, progress_bar, say
from ladle.steering_options import OPTIONS, Normalize


class Dtype(StrEnum):
    """Types a checkpoint can be written in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def _help(option: str) -> str:
    return OPTIONS[option].text


def command(
    family: Annotated[
        str,
        typer.Argument(
            help="An installed family, a folder with family.toml, or a hub id; with --adapter a base will do."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet, or be empty.")],
    preference: Annotated[
        str | None, typer.Option(help=f"{_help('preference')} Such as positive=0.8,concise=0.2.")
    ] = None,
    method: Annotated[str | None, typer.Option(help=_help("method"), show_default="the family's")] = None,
    coefficients: Annotated[
        str | None, typer.Option(help=f"{_help('coefficients')} Such as member=0.5,other=-0.2.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help=_help("strength"), show_default="1")] = None,
    normalize: Annotated[Normalize, typer.Option(help=_help("normalize"))] = "none",
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead of members: a PEFT adapter of any kind (DoRA, layers trained whole), merged into the base.",
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the weights.", show_default="the base's")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write what a preference would be served with as a checkpoint that transformers loads.

    Example: ladle merge demo --preference positive=0.7,concise=0.3 --out merged

    An adapter that cannot be mixed in a forward pass becomes a full-weight member: ladle merge org/base --adapter
    adapters/dora --out whole
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        import torch

        from ladle.guidance.offline import merge_offline
        from ladle.guidance.plan import Steering
        from ladle.merging.checkpoints.new_folder import require_free
        from ladle.merging.family.family import load_family

        options = {
            "method": method,
            "preference": parse_pairs(preference, "preference") if preference is not None else None,
            "coefficients": parse_pairs(coefficients, "coefficients") if coefficients is not None else None,
            "strength": strength,
            "normalize": normalize,
        }
        steering = Steering.parse(given(options))
        require_free(out)
        torch_dtype = getattr(torch, dtype.value) if dtype is not None else None
        if adapter is not None:
            _refuse_beside(adapter, options)
            notes = _merge_adapter(family, adapter, out, torch_dtype, cache_dir)
            if as_json:
                print_json({"out": str(out), "adapter": adapter, "warnings": list(notes)})
            else:
                typer.echo(f"{out}: {family} with {adapter}")
            return
        loaded = load_family(family, cache_dir, progress=say)
        with progress_bar("merging") as progress:
            plan = merge_offline(loaded, steering, out, dtype=torch_dtype, progress=progress)
        members = plan.coefficients.as_dict() if plan.coefficients is not None else {}
        if as_json:
            print_json(
                {
                    "out": str(out),
                    "method": plan.method,
                    "preference": plan.preference.as_dict() if plan.preference is not None else None,
                    "coefficients": members,
                    "warnings": list(plan.warnings),
                }
            )
            return
        for warning in plan.warnings:
            say(f"warning: {warning}")
        mix = ", ".join(f"{name}={value:+.4f}" for name, value in members.items()) or "the base alone"
        typer.echo(f"{out}: {plan.method}, {mix}")


def _refuse_beside(adapter: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where an option is given that says nothing of one adapter."""
    from ladle.merging.exceptions import InputError

    for name, value in options.items():
        if value is not None and value != "none":
            reason = f"--adapter {adapter} is merged as it is, without this option"
            raise InputError(name, value, reason=reason)


def _merge_adapter(family: str, adapter: str, out: Path, dtype: Any, cache_dir: Path | None) -> tuple[str, ...]:
    from ladle.merging.checkpoints.member_folder import member_folder
    from ladle.merging.family.base_of import base_of
    from ladle.merging.merges.adapter_merge import merge_adapter

    base, _ = base_of(family, cache_dir, say)
    notes = merge_adapter(base, member_folder(adapter, Path.cwd(), say), out, dtype)
    for note in notes:
        say(f"warning: {note}")
    return notes
