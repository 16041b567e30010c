"""Pictures of a sweep, from its summary alone: fronts of mean rewards, and over three objectives the simplex too."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; with markers, on paper without colour as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"
_HEIGHT = np.sqrt(3) / 2


def write_plots(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes ``front.png`` and ``.svg``, for three objectives also ``simplex.png`` and ``.svg``; returns the files.

    One objective has no front: its reward over its weight is no picture of a trade, and nothing is written.
    """
    objectives = summary["objectives"]
    written = []
    if len(objectives) > 1:
        written += _save(_fronts(summary), folder / "front")
    if len(objectives) == 3:
        written += _save(_simplices(summary), folder / "simplex")
    return written


def _save(figure: Figure, stem: Path) -> list[Path]:
    files = [stem.with_suffix(kind) for kind in (".png", ".svg")]
    for file in files:
        # No date inside: the same samples give the same file.
        figure.savefig(file, dpi=144, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
    return files


def _fronts(summary: Mapping[str, Any]) -> Figure:
    """A panel for each pair of objectives: means with their intervals, a method's points joined by falling weight."""
    pairs = list(itertools.combinations(summary["objectives"], 2))
    figure, panels = plt.subplots(1, len(pairs), figsize=(5.2 * len(pairs), 4.4), squeeze=False)
    for axes, (x, y) in zip(panels[0], pairs, strict=True):
        _front(axes, summary, x, y)
    panels[0][-1].legend(frameon=False, fontsize=8)
    answers = summary["prompts"] * summary["answers"]
    figure.suptitle(f"mean reward, {answers} answers a point, 95 % intervals over prompts", fontsize=9)
    return figure


def _front(axes: Axes, summary: Mapping[str, Any], x: str, y: str) -> None:
    for place, method in enumerate(summary["methods"]):
        rows = [row for row in summary["settings"] if row["method"] == method]
        rows.sort(key=lambda row: -row["weights"][x])
        # Over three objectives a line would join points that are no neighbours.
        line = "-" if len(summary["objectives"]) == 2 else ""
        _points(axes, rows, x, y, MARKERS[place % len(MARKERS)] + line, COLOURS[place % len(COLOURS)], method)
    base = [row for row in summary["settings"] if not row["weights"]]
    _points(axes, base, x, y, "x", "0.4", "base")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)


def _points(axes: Axes, rows: Sequence[Mapping[str, Any]], x: str, y: str, style: str, colour: str, name: str) -> None:
    def ends(objective: str) -> list[list[float]]:
        figures = [row[objective] for row in rows]
        return [[f["mean"] - f["low"] for f in figures], [f["high"] - f["mean"] for f in figures]]

    axes.errorbar(
        [row[x]["mean"] for row in rows],
        [row[y]["mean"] for row in rows],
        xerr=ends(x),
        yerr=ends(y),
        fmt=style,
        color=colour,
        ecolor=colour,
        elinewidth=0.5,
        markersize=4,
        linewidth=1,
        label=name,
    )


def _simplices(summary: Mapping[str, Any]) -> Figure:
    """A triangle for each method and objective: the mean reward, in the base's standard deviations, at every weight."""
    objectives, methods = summary["objectives"], list(summary["methods"])
    size = (3.0 * len(objectives), 2.8 * len(methods))
    figure, panels = plt.subplots(len(methods), len(objectives), figsize=size, squeeze=False)
    for line, method in zip(panels, methods, strict=True):
        rows = [row for row in summary["settings"] if row["method"] == method]
        corners = [_place([row["weights"][name] for name in objectives]) for row in rows]
        for axes, objective in zip(line, objectives, strict=True):
            values = [row[objective]["z"] for row in rows]
            axes.plot([0, 1, 0.5, 0], [0, 0, _HEIGHT, 0], color="0.7", linewidth=0.8)
            dots = axes.scatter(*zip(*corners, strict=True), c=values, cmap="viridis", s=60, zorder=2)
            figure.colorbar(dots, ax=axes, shrink=0.7)
            for name, (x, y), side in zip(
                objectives, [(0, 0), (1, 0), (0.5, _HEIGHT)], ["top", "top", "bottom"], strict=True
            ):
                axes.annotate(
                    name, (x, y), ha="center", va=side, fontsize=7, xytext=(0, -6 if side == "top" else 6),
                    textcoords="offset points", fontweight="bold" if name == objective else "normal",
                )  # fmt: skip
            axes.set_title(f"{method}: {objective}", fontsize=8, pad=12)
            axes.set_aspect("equal")
            axes.margins(0.15)
            axes.axis("off")
    return figure


def _place(weights: Sequence[float]) -> tuple[float, float]:
    """Where a preference over three objectives lies in a triangle."""
    _, second, third = weights
    return second + third / 2, third * _HEIGHT
