"""What Ladle wants of an H200, and whether a file of figures has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

Row = Mapping[str, object]


@dataclass(frozen=True)
class Goal:
    """A bound on what is measured; it counts for the worst of the rows that it is about.

    Attributes:
        told: what it says, in words.
        picks: whether it is about a row.
        figure: of such a row.
        least: the figure is to be this or more.
        most: the figure is to be this or less.
    """

    told: str
    picks: Callable[[Row], bool]
    figure: Callable[[Row], float]
    least: float | None = None
    most: float | None = None

    def worst(self, rows: Sequence[Row]) -> float | None:
        """None where no row was measured that this is about."""
        figures = [self.figure(row) for row in rows if self.picks(row)]
        if not figures:
            return None
        return min(figures) if self.least is not None else max(figures)

    def met(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)


def _times(row: Row) -> float:
    return float(str(row["compared_over_this"]))


def _over_plain(row: Row) -> float:
    return 1 / _times(row)


def _share(row: Row) -> float:
    return float(str(row["share_of_copy"]))


def _fused(row: Row) -> bool:
    return row["name"] == "fused_step" and str(row["case"]).startswith("64 x 128256, 3 sources")


def _merges(row: Row) -> bool:
    return row["name"] == "merge_weights"


def _decode(case: str, batches: Sequence[int], name: str | None = None) -> Callable[[Row], bool]:
    def picks(row: Row) -> bool:
        here = row["part"] == "decode" and row["case"] == case and int(str(row["batch"])) in batches
        return here and name in (None, row["name"])

    return picks


GOALS = (
    Goal("fused_step over torch eager (64 x 128k, 3 sources)", _fused, _times, least=5),
    Goal("fused_step, share of the copy's bandwidth (64 x 128k, 3 sources)", _fused, _share, least=0.8),
    Goal("merge_weights, share of the copy's bandwidth", _merges, _share, least=0.85),
    Goal("16 preferences over plain, batch 16", _decode("16 preferences", (16,)), _over_plain, most=1.05),
    Goal("MAGE with 3 sources over plain, batch 1 to 8", _decode("mage", range(1, 9)), _over_plain, most=1.1),
    Goal("8B, share of the copy's bandwidth, batch 1", _decode("plain", (1,), "8B"), _share, least=0.75),
)


def table(rows: Sequence[Row]) -> Table:
    """The goals and the worst figures that ``rows`` have for them."""
    result = Table(title="goals on an H200: the worst of all rows that they are about")
    for column in ("goal", "wanted", "measured", ""):
        result.add_column(column, justify="left" if column in ("goal", "") else "right")
    for goal in GOALS:
        wanted = f">= {goal.least}" if goal.least is not None else f"<= {goal.most}"
        worst = goal.worst(rows)
        verdict = "not measured" if worst is None else "met" if goal.met(worst) else "missed"
        result.add_row(goal.told, wanted, "" if worst is None else f"{worst:.3f}", verdict)
    return result
