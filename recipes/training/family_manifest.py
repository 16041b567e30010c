"""The family.toml of a family that a recipe made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ladle.recipes.config import Recipe

AMATEUR = "amateur"
CONDITIONED = "conditioned"


def write_manifest(recipe: Recipe, out: Path) -> None:
    """Writes `out/family.toml`; the adapters are expected in `out/adapters/NAME`. Experts and router are listed once
    they are all there, whichever of the recipe's commands made them; so are explicit values, oracles, the value
    that takes the whole preference, and the amateur."""
    lines = [
        f"name = {json.dumps(recipe.name)}",
        f"objectives = {_list(recipe.objectives)}",
        *([f'chat_template = "{recipe.chat_template.name}"'] if recipe.chat_template else []),
        "",
        *_sampling(recipe),
        "[base]",
        f"model = {json.dumps(recipe.base)}",
        "",
        "[soup]",
        f"beta = {recipe.soup.beta}" if recipe.soup.matrix is None else f"matrix = {recipe.matrix().tolist()}",
    ]
    if recipe.soup.extrapolation:
        lines.append(
            "extrapolation = { " + ", ".join(f"{name} = {k}" for name, k in recipe.soup.extrapolation.items()) + " }"
        )
    for objective, row in zip(recipe.objectives, recipe.matrix().tolist(), strict=True):
        weights = "[" + ", ".join(f"{weight:.12g}" for weight in row) + "]"
        lines += [
            "",
            "[[backbones]]",
            f'name = "bone-{objective}"',
            f'path = "adapters/bone-{objective}"',
            f"rewards = {weights}",
        ]
    for objective in recipe.objectives:
        lines += [
            "",
            "[[policies]]",
            f'name = "policy-{objective}"',
            f'path = "adapters/policy-{objective}"',
            f'objective = "{objective}"',
        ]
    for objective in recipe.objectives:
        lines += [
            "",
            "[[values]]",
            f'name = "implicit-{objective}"',
            'kind = "implicit"',
            f'path = "adapters/policy-{objective}"',
            f'objective = "{objective}"',
        ]
    for name, mix in recipe.oracle_members().items():
        if (out / "adapters" / name).is_dir():
            row = "[" + ", ".join(f"{weight:.12g}" for weight in mix) + "]"
            lines += ["", "[[policies]]", f'name = "{name}"', f'path = "adapters/{name}"', f"rewards = {row}"]
    for name, index in recipe.values().items():
        if not (out / "adapters" / name).is_dir():
            continue
        lines += [
            "",
            "[[values]]",
            f'name = "{name}"',
            'kind = "explicit"',
            f'path = "adapters/{name}"',
            f'objective = "{recipe.objectives[index]}"',
        ]
    if (out / "adapters" / CONDITIONED).is_dir():
        lines += ["", "[[values]]", f'name = "{CONDITIONED}"', 'kind = "implicit"', f'path = "adapters/{CONDITIONED}"']
    if (out / AMATEUR).is_dir():
        told = f'name = "{AMATEUR}"', f'model = "{AMATEUR}"', 'tokenizer = "base"', "amateur = true"
        lines += ["", "[[models]]", *told, "", "[speculation]", f'model = "{AMATEUR}"']
    if recipe.experts is not None and (out / "adapters" / "router").is_dir():
        for domain in recipe.experts.samples:
            lines += ["", "[[experts]]", f'name = "{domain}"', f'path = "adapters/expert-{domain}"']
        lines += ["", "[router]", 'path = "adapters/router"']
    for name, preference in recipe.presets.items():
        weights = ", ".join(f"{objective} = {weight}" for objective, weight in preference.items())
        lines += ["", f"[presets.{name}]", f"preference = {{ {weights} }}"]
    out.mkdir(parents=True, exist_ok=True)
    if recipe.chat_template is not None:
        shutil.copyfile(recipe.chat_template, out / recipe.chat_template.name)
    (out / "family.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sampling(recipe: Recipe) -> list[str]:
    """``[sampling]`` and the tables below it, each with an empty line behind it."""
    if recipe.sampling is None:
        return []
    tables = {"sampling": recipe.sampling} | {f"sampling.methods.{n}": t for n, t in recipe.sampling.methods.items()}
    return [
        line
        for name, table in tables.items()
        for line in (f"[{name}]", *(f"{field} = {value}" for field, value in table.given().items()), "")
    ]


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
