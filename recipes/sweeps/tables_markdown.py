"""A comparison as Markdown tables, for documents that are to say what ``methods.csv`` and ``settings.csv`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ladle.recipes.markdown import table
from ladle.recipes.sweeps.grid import BASE


def methods_table(summary: Mapping[str, Any]) -> str:
    """One row a method: hypervolumes and inner product with their intervals, Kendall's tau of every objective, and over
    its settings the mean and the greatest perplexity relative to the base's own, and the share of degenerate answers.
    ``summary``: of ``sweep_summary.summarise``."""
    objectives = summary["objectives"]
    taus = [f"tau {objective}" for objective in objectives]
    rows = [["method", "hypervolume", "sound", "mu·z", *taus, "perplexity / base", "degenerate"]]
    for method, figures in summary["methods"].items():
        settings = [setting for setting in summary["settings"] if setting["method"] == method]
        degenerate = sum(setting["degenerate"] for setting in settings) / len(settings)
        rows.append(
            [
                method,
                *(_interval(figures[key]) for key in ("hypervolume", "hypervolume_sound", "inner_product")),
                *(_number(figures[f"kendall_{objective}"]["value"]) for objective in objectives),
                _perplexities(settings, summary),
                f"{100 * degenerate:.1f} %",
            ]
        )
    return table(rows) + "\n"


def settings_table(summary: Mapping[str, Any]) -> str:
    """One row a setting, the base's first: weights, mean rewards with their intervals, length,
    perplexity under the base, share of degenerate answers."""
    objectives = summary["objectives"]
    rows = [["method", *(f"mu {name}" for name in objectives), *objectives, "tokens", "perplexity", "degenerate"]]
    for setting in summary["settings"]:
        rows.append(
            [
                setting["method"],
                *(f"{setting['weights'][name]:.2g}" if setting["weights"] else "" for name in objectives),
                *(_interval({"value": setting[name]["mean"], **setting[name]}) for name in objectives),
                f"{setting['tokens']:.1f}",
                _number(setting["base_perplexity"]),
                f"{100 * setting['degenerate']:.1f} %",
            ]
        )
    return table(rows) + "\n"


def _perplexities(settings: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    own = next(setting["base_perplexity"] for setting in summary["settings"] if setting["method"] == BASE)
    known = [setting["base_perplexity"] / own for setting in settings if own and setting["base_perplexity"]]
    return f"{sum(known) / len(known):.2f}, at most {max(known):.2f}" if known else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(figure: Mapping[str, Any]) -> str:
    """Empty where a measure does not exist, as rank correlations of one point do not."""
    if figure["value"] is None:
        return ""
    digits = 1 if abs(figure["value"]) >= 10 else 2
    return f"{_number(figure['value'], digits)} [{_number(figure['low'], digits)}, {_number(figure['high'], digits)}]"
