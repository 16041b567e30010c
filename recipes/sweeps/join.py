"""Several sweeps as one: families, members or training seeds side by side, on the same prompts and seeds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ladle.recipes.sweeps.grid import BASE, Setting
from ladle.recipes.sweeps.store import Sample, reopen

SAME = ("objectives", "prompts", "answers", "seed", "sampling", "rewards")
"""What sweeps must have in common for their answers to be compared one by one."""


def join(sweeps: Sequence[tuple[str, Path]]) -> tuple[list[str], list[Setting], dict[tuple[str, int, int], Sample]]:
    """Objectives, settings and samples of all sweeps.

    Args:
        sweeps: (name, folder); a method M of the sweep named N becomes ``N/M``, of one without a name it stays M.

    Returns:
        The base is the first sweep's.

    Raises:
        ValueError: no sweep in a folder, sweeps that asked for different things, or a method that two of them have
            under one name.
    """
    objectives: list[str] = []
    settings: list[Setting] = []
    samples: dict[tuple[str, int, int], Sample] = {}
    first: dict[str, Any] = {}
    for name, folder in sweeps:
        store, asked, own = reopen(folder)
        if not first:
            first, objectives = asked, list(asked["objectives"])
        for key in SAME:
            if asked.get(key) != first.get(key):
                raise ValueError(f"{folder}: {key}: not what the sweep in {sweeps[0][1]} asked for; nothing to compare")
        answers: dict[str, list[Sample]] = {}
        for sample in store.samples.values():
            answers.setdefault(sample.setting, []).append(sample)
        for setting in own:
            if setting.label == BASE and any(known.label == BASE for known in settings):
                continue
            label = f"{name}/{setting.label}" if name and setting.label != BASE else setting.label
            renamed = replace(setting, label=label)
            if any(known.key == renamed.key for known in settings):
                raise ValueError(f"{folder}: method {label!r} is there twice; give the sweeps names, NAME=FOLDER")
            settings.append(renamed)
            for sample in answers.get(setting.key, ()):
                same = sample if renamed.key == setting.key else replace(sample, setting=renamed.key)
                samples[same.key] = same
    return objectives, settings, samples


def write_tables(summary: Mapping[str, Any], folder: Path) -> None:
    """``settings.csv``, ``methods.csv`` and ``differences.csv``: what ``summary.json`` has, a row each."""
    objectives = summary["objectives"]
    rows = []
    for setting in summary["settings"]:
        row = {
            "method": setting["method"],
            **{f"weight_{name}": setting["weights"].get(name, "") for name in objectives},
        }
        for name in objectives:
            row |= {f"{name}{part and '_' + part}": setting[name][part or "mean"] for part in ("", "low", "high", "z")}
        rest = ("tokens", "degenerate", "cut", "base_perplexity", "distinct_1", "distinct_2")
        rows.append(row | {name: setting[name] for name in rest})
    _write(folder / "settings.csv", rows)
    _write(folder / "methods.csv", [
        {"method": method, **_flat(figures)} for method, figures in summary["methods"].items()
    ])  # fmt: skip
    _write(folder / "differences.csv", [
        {
            **{name: value for name, value in row.items() if not isinstance(value, dict)},
            **_flat({name: value for name, value in row.items() if isinstance(value, dict)}),
        }
        for row in summary["differences"]
    ])  # fmt: skip


def _flat(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name if part == "value" else f"{name}_{part}": value
        for name, figure in figures.items()
        for part, value in figure.items()
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
