"""``ladle monitor``: a value that watches answers, trained from texts with labels and written into a family."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    family: Annotated[Path, typer.Argument(help="Folder of the family that the monitor is added to.")],
    texts: Annotated[Path, typer.Argument(help="Answers with labels: a .jsonl file.")],
    name: Annotated[str, typer.Option(help="What the value and its monitor are called.")] = "harm",
    run: Annotated[int, typer.Option("--for", min=1, max=512, help="Tokens in a row that must exceed the bound.")] = 3,
    hold: Annotated[int, typer.Option(min=1, max=512, help="Tokens of an answer that are held back.")] = 8,
    false_stops: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="The share of good answers that may be ended.")
    ] = 0.1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of the adapter, at its highest.")] = 3e-4,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    module: Annotated[
        list[str] | None,
        typer.Option(help="A linear module that gets factors; may be repeated.", show_default="those of attention"),
    ] = None,
) -> None:
    """Train a value that watches answers from texts with labels, and write it into a family.

    Example: ladle monitor FOLDER answers.jsonl --name harm --for 3 --hold 8
    """
    from ladle.merging.exceptions import FamilyError, InputError
    from ladle.merging.family.manifest import load_manifest
    from ladle.merging.family.place import MANIFEST_NAME
    from ladle.recipes.base_model import load_base
    from ladle.recipes.training.monitor import (
        MonitorConfig,
        probabilities,
        read_texts,
        report,
        split,
        train_monitor,
        watching,
    )

    try:
        manifest = load_manifest(family)
        place = family if family.is_dir() else family.parent
        taken = {entry.name for _, entry in manifest.members()} | {entry.name for entry in manifest.monitors}
        if name in taken or (place / "adapters" / name).exists():
            raise InputError("name", name, "one that the family has not", "there is a member or a folder of this name")
        spec = manifest.base.model
        base = load_base(str(place / spec) if (place / spec).is_dir() else spec)
        if manifest.chat_template is not None:
            base.tokenizer.chat_template = (place / manifest.chat_template).read_text(encoding="utf-8")
        trained, held = split(read_texts(texts, base), seed)
        typer.echo(f"{len(trained)} answers to train on, {len(held)} held out")
        config = MonitorConfig(seed=seed, rank=rank, epochs=epochs, learning_rate=learning_rate)
        folder = place / "adapters" / name
        folder.parent.mkdir(exist_ok=True)
        modules = tuple(module or ("q_proj", "k_proj", "v_proj", "o_proj"))
        loss = train_monitor(base, name, trained, modules, config, folder, spec)
        figures = watching(probabilities(base, folder, held), [text.bad for text in held], run, false_stops)
        entries = [
            *("", "[[values]]", f'name = "{name}"', 'kind = "monitor"', f'path = "adapters/{name}"'),
            *("", "[[monitors]]", f'name = "{name}"', f'value = "{name}"'),
            *(f"above = {min(figures.above, 0.999999):.6f}", f"for = {run}", f"hold = {hold}", ""),
        ]
        with (place / MANIFEST_NAME).open("a", encoding="utf-8") as file:
            file.write("\n".join(entries))
        load_manifest(place)
    except (ValueError, OSError, FamilyError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"loss {loss:.3f} nats a token")
    for line in report(figures, run):
        typer.echo(line)
    typer.echo(f"written to {folder} and {place / MANIFEST_NAME}; a server watches by it when it starts again")
