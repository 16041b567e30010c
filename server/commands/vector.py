"""``ladle vector``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ladle.server.commands.output import clear_errors, print_json, progress_bar, say

_AT = ("mean", "last")


def command(
    family: Annotated[str, typer.Argument(help="An installed family or a family's folder.")],
    name: Annotated[str, typer.Argument(help="What requests will call the vector.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of texts in pairs, positive and negative, and the prompt of both, if there is one."
        ),
    ] = None,
    positive: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instead of pairs: a text of what is wanted.")
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="A text of its opposite.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one per line; the two texts are system messages in front of each."),
    ] = None,
    method: Annotated[
        str, typer.Option(help="mean: the mean difference. pca: the first principal component of the differences.")
    ] = "mean",
    at: Annotated[
        str, typer.Option(help="Tokens whose hidden states count: the mean of the text's, or its last.")
    ] = "mean",
    layers: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Layers after which it is added, from 0.", show_default="all"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a vector of this name.")] = False,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder in which a converted base is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make a steering vector from pairs of texts, and name it in the family's family.toml.

    Example: ladle vector ./my-family cheerful --pairs pairs.jsonl --layers 8-20

    From two system messages: ladle vector ./my-family calm --positive "You are calm." --negative "You are upset."
    --prompts prompts.txt
    """
    with clear_errors():
        # Here, so that other commands do not wait for torch to be imported.
        from ladle.guidance.diagnostics.probe_prompts import read_prompts
        from ladle.merging.exceptions import InputError
        from ladle.merging.family.family_model import open_model
        from ladle.merging.family.manifest import load_manifest
        from ladle.merging.family.place import find_manifest
        from ladle.merging.family.vector_entry import require_new, write_vector
        from ladle.merging.members.contrast import METHODS, contrast
        from ladle.server.commands.vector_pairs import pairs_of, read_pairs
        from ladle.server.engine.forward.hidden_states import states_after_layers
        from ladle.server.engine.requests.tokenizer import load_tokenizer

        if method not in METHODS:
            raise InputError("method", method, ", ".join(METHODS))
        if at not in _AT:
            raise InputError("at", at, ", ".join(_AT))
        if (pairs is None) == (positive is None or negative is None):
            raise InputError("pairs", pairs, "--pairs, or --positive and --negative, one of the two")
        if prompts is not None and pairs is not None:
            raise InputError("prompts", str(prompts), reason="pairs have prompts of their own")
        file = find_manifest(family, say)
        manifest = load_manifest(file)
        target = require_new(manifest, file.parent, name, force)
        if pairs is not None:
            made = read_pairs(pairs)
        else:
            made = pairs_of(positive or "", negative or "", [] if prompts is None else read_prompts(prompts))
        base = open_model("", manifest.base.model, file.parent, cache_dir, say)
        chosen = _layers(layers, base.architecture.layers)
        tokenizer = load_tokenizer(base.base_path)
        texts = [side.ids(tokenizer) for pair in made for side in pair]
        for index, (ids, start) in enumerate(texts):
            if start >= len(ids):
                raise InputError(f"pairs:{index // 2 + 1}", made[index // 2][index % 2].text, "at least one token")
        with progress_bar("reading") as progress:
            reduce = (lambda states: states.mean(dim=0)) if at == "mean" else (lambda states: states[-1])
            states = states_after_layers(base, texts, reduce, progress)
        directions = contrast(states[0::2], states[1::2], method)
        outside = [layer for layer in range(len(directions)) if layer not in chosen]
        directions[outside] = 0.0
        if not directions.any():
            raise InputError("pairs", len(made), reason="the two sides of every pair are the same to the base")
        facts = {"method": method, "at": at, "pairs": str(len(made)), "layers": f"{chosen.start}-{chosen.stop - 1}"}
        write_vector(file, target, name, directions, facts)
        norms = directions.norm(dim=1).tolist()
        if as_json:
            print_json({"name": name, "path": str(target), **facts, "pairs": len(made), "norms": norms})
            return
        typer.echo(f"{target}: {name}, {method} of {len(made)} pairs, layers {facts['layers']} of {len(norms)}")
        typer.echo(f"named in {file}; a running server reads it when the family is loaded anew")


def _layers(text: str | None, count: int) -> range:
    """The layers that ``FIRST-LAST`` means, the last included. Raises InputError."""
    from ladle.merging.exceptions import InputError

    if text is None:
        return range(count)
    first, separator, last = text.partition("-")
    if not (separator and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < count):
        raise InputError("layers", text, f"FIRST-LAST, from 0 to {count - 1}")
    return range(int(first), int(last) + 1)
