"""Goals are read off the rows that they are about, the worst of them."""

from typing import Any

import pytest
from rich.console import Console

from ladle.benchmarks.gpu import goals
from ladle.benchmarks.gpu import ops as kernels
from ladle.benchmarks.gpu.step_cases import SOURCES


def op(name: str, case: str, times: float, share: float) -> dict[str, Any]:
    return {
        "part": "op", "name": name, "case": case, "batch": "", "compared_over_this": times, "share_of_copy": share,
    }  # fmt: skip


def decode(name: str, case: str, batch: int, over_plain: float, share: float = 0.5) -> dict[str, Any]:
    return {
        "part": "decode", "name": name, "case": case, "batch": batch, "compared_over_this": 1 / over_plain,
        "share_of_copy": share,
    }  # fmt: skip


def verdicts(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    made = goals.table(rows)
    return {
        told: (measured, verdict)
        for told, measured, verdict in zip(*(list(made.columns[i].cells) for i in (0, 2, 3)), strict=True)  # type: ignore[arg-type]
    }


def test_the_worst_row_decides() -> None:
    rows = [
        op("fused_step", "64 x 128256, 3 sources, greedy", 9.0, 0.9),
        op("fused_step", "64 x 128256, 3 sources, top-p 0.9", 6.0, 0.7),
        op("fused_step", "8 x 128256, 3 sources, greedy", 1.0, 0.1),  # none of its business
        op("merge_weights", "3 x [8, 12]", 1.0, 0.85),
        decode("135M", "16 preferences", 16, 1.04),
        decode("1.5B", "16 preferences", 16, 1.06),
        decode("8B", "mage", 1, 1.02),
        decode("8B", "mage", 8, 1.09),
        decode("8B", "mage", 32, 1.9),
        decode("135M", "plain", 1, 1.0, 0.1),
        decode("8B", "plain", 1, 1.0, 0.8),
    ]
    assert [verdict for _, verdict in verdicts(rows).values()] == ["met", "missed", "met", "missed", "met", "met"]
    assert [measured for measured, _ in verdicts(rows).values()] == [
        "6.000", "0.700", "0.850", "1.060", "1.090", "0.800",
    ]  # fmt: skip
    Console(quiet=True).print(goals.table(rows))


def test_what_was_not_measured_is_said() -> None:
    assert set(verdicts([]).values()) == {("", "not measured")}


def test_goals_are_about_what_is_measured() -> None:
    sizes = kernels.Sizes()
    assert SOURCES == 3 and 64 in sizes.batches and 128256 in sizes.vocabularies


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda goal: goal.told)
def test_a_goal_has_one_bound(goal: goals.Goal) -> None:
    assert (goal.least is None) != (goal.most is None)
    bound = goal.least if goal.least is not None else goal.most
    assert bound is not None and goal.met(bound)
    assert not goal.met(bound - 0.01 if goal.least is not None else bound + 0.01)
