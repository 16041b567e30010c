"""What a sweep shows: progress where there is no terminal, whole numbers where there is little room, doubts."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ladle.recipes.sweeps.plots import pareto
from ladle.recipes.sweeps.sweep_report import progress_bar, show


def figure(value: float) -> dict[str, float]:
    return {"mean": value, "value": value, "low": value - 1, "high": value + 1}


def summary(prompts: int) -> dict[str, Any]:
    objectives = ["positive", "simple", "concise"]
    setting = {
        "method": "mage:value=implicit,strength=0.5", "weights": dict.fromkeys(objectives, 1 / 3), "tokens": 41.5,
        "base_perplexity": 4.25, "distinct_2": 0.5, "degenerate": 0.125,
        **{name: figure(12.345) for name in objectives},
    }  # fmt: skip
    methods = {"mage:value=implicit,strength=0.5": {"hypervolume": figure(104.489)}}
    return {
        "objectives": objectives, "settings": [setting], "methods": methods, "differences": [], "reference": -1.0,
        "prompts": prompts,
    }  # fmt: skip


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_numbers_are_whole_at_any_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    show(summary(40), Path("out"), False)
    shown = capsys.readouterr().out
    assert shown.count("12.345 [11.345, 13.345]") == 3 and "104.489 [103.489, 105.489]" in shown
    assert "…" not in shown and "mean little" not in shown


def test_few_prompts_are_a_reason_for_doubt(capsys: pytest.CaptureFixture[str]) -> None:
    show(summary(3), Path("out"), False)
    assert "3 prompts: below 20, hypervolumes and orders of methods mean little" in capsys.readouterr().out


def test_without_a_terminal_there_is_a_line_a_minute_with_an_estimate() -> None:
    written, moment = io.StringIO(), [0.0]
    console = Console(file=written, force_terminal=False, width=200)
    with progress_bar(console, lambda: moment[0]) as report:
        for done, now in ((10, 0), (20, 30), (40, 61), (50, 90), (100, 300)):
            moment[0] = float(now)
            report(done, 100)
    assert written.getvalue().splitlines() == [
        "sampling: 10 of 100 answers",
        "sampling: 40 of 100 answers, about 3 min to go",
        "sampling: 100 of 100 answers",
    ]


def test_the_front_is_what_nothing_is_better_than() -> None:
    assert pareto([(0, 3), (1, 1), (2, 2), (1, 2), (2, 0), (-1, 3)]) == [(2, 2), (0, 3)]
