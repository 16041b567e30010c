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
    """A panel for each pair of objectives: means with their intervals, labelled by their weights; a line joins those
    that no other point is better than in both."""
    pairs = list(itertools.combinations(summary["objectives"], 2))
    figure, panels = plt.subplots(1, len(pairs), figsize=(5.2 * len(pairs), 4.4), squeeze=False)
    for axes, (x, y) in zip(panels[0], pairs, strict=True):
        _front(axes, summary, x, y)
    _share_scales(panels[0], pairs)
    handles, labels = panels[0][0].get_legend_handles_labels()
    # Below the panels, where no point lies.
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4)
    answers = summary["prompts"] * summary["answers"]
    figure.suptitle(f"mean reward, {answers} answers a point, 95 % intervals over prompts", fontsize=9)
    return figure


def _front(axes: Axes, summary: Mapping[str, Any], x: str, y: str) -> None:
    for place, method in enumerate(summary["methods"]):
        rows = [row for row in summary["settings"] if row["method"] == method]
        rows.sort(key=lambda row: -row["weights"][x])
        _points(axes, rows, x, y, MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)], method)
        for row in rows:
            axes.annotate(
                _weights(row["weights"]), (row[x]["mean"], row[y]["mean"]), xytext=(3, 3),
                textcoords="offset points", fontsize=5, color=COLOURS[place % len(COLOURS)],
            )  # fmt: skip
    base = [row for row in summary["settings"] if not row["weights"]]
    _points(axes, base, x, y, "x", "0.4", "base")
    front = pareto([(row[x]["mean"], row[y]["mean"]) for row in summary["settings"]])
    axes.plot(*zip(*front, strict=True), color="0.5", linewidth=0.8, zorder=0, label="front")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ``points`` than which no other one is better in both coordinates, by falling first one."""
    best, front = -np.inf, []
    for x, y in sorted(set(points), reverse=True):
        if y > best:
            front.append((x, y))
            best = y
    return front


def _weights(weights: Mapping[str, float]) -> str:
    return " ".join(f"{weight:.2f}".rstrip("0").rstrip(".").removeprefix("0") or "0" for weight in weights.values())


def _share_scales(panels: Sequence[Axes], pairs: Sequence[tuple[str, str]]) -> None:
    """Give each objective the same limits in all panels."""
    limits: dict[str, tuple[float, float]] = {}
    sides = [
        (axes, side, name)
        for axes, pair in zip(panels, pairs, strict=True)
        for side, name in zip("xy", pair, strict=True)
    ]
    for axes, side, name in sides:
        low, high = getattr(axes, f"get_{side}lim")()
        known = limits.get(name, (low, high))
        limits[name] = min(low, known[0]), max(high, known[1])
    for axes, side, name in sides:
        getattr(axes, f"set_{side}lim")(limits[name])


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
    # One scale per objective, so that methods can be compared by their colours.
    every = {name: [row[name]["z"] for row in summary["settings"] if row["weights"]] for name in objectives}
    for line, method in zip(panels, methods, strict=True):
        rows = [row for row in summary["settings"] if row["method"] == method]
        corners = [_place([row["weights"][name] for name in objectives]) for row in rows]
        for axes, objective in zip(line, objectives, strict=True):
            values = [row[objective]["z"] for row in rows]
            axes.plot([0, 1, 0.5, 0], [0, 0, _HEIGHT, 0], color="0.7", linewidth=0.8)
            dots = axes.scatter(
                *zip(*corners, strict=True), c=values, cmap="viridis", s=60, zorder=2,
                vmin=min(every[objective]), vmax=max(every[objective]),
            )  # fmt: skip
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
