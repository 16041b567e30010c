"""A newcomer's look at a family: every place is asked in both ways, and what is written adds up."""

import csv
from pathlib import Path

from ladle.recipes.everyday import DRAWS, Answered, places, summary, write

OBJECTIVES = ["positive", "concise"]


def answered(place: str, drawn: str, text: str, relevance: float) -> Answered:
    return Answered(place, drawn, "Why is the sky blue?", text, (1.0, -2.0), relevance)


def test_places_are_the_base_the_corners_and_the_centre() -> None:
    found = places(OBJECTIVES)
    assert found == {
        "base": None, "positive": {"positive": 1.0}, "concise": {"concise": 1.0},
        "centre": {"positive": 1.0, "concise": 1.0},
    }  # fmt: skip


def test_a_method_without_preferences_stands_beside_the_base() -> None:
    assert places(OBJECTIVES, "contrastive") == {"base": None, "contrastive": {}}
    assert places(OBJECTIVES, "parm") == places(OBJECTIVES)


def test_the_table_counts_what_is_degenerate_and_what_is_beside_the_point(tmp_path: Path) -> None:
    good, short = "Air scatters short waves of light more than long ones.", "The sky."
    found = [
        answered("centre", drawn, text, relevance)
        for drawn in DRAWS
        for text, relevance in ((good, 0.5), (short, -0.1))
    ]
    rows = summary(found, OBJECTIVES)
    assert [row[:4] for row in rows[1:]] == [["centre", drawn, "1 of 2", "1 of 2"] for drawn in DRAWS]
    assert rows[1][4:] == ["0.20", "1.00", "-2.00", "6"]
    shown = write(found, OBJECTIVES, tmp_path)
    assert shown in (tmp_path / "EVERYDAY.md").read_text(encoding="utf-8")
    with (tmp_path / "everyday.csv").open(newline="", encoding="utf-8") as file:
        assert [row["degenerate"] for row in csv.DictReader(file)] == ["0", "1"] * 2


def test_a_method_s_answers_have_files_of_their_own(tmp_path: Path) -> None:
    write([answered("base", "greedy", "Air scatters light.", 0.1)], OBJECTIVES, tmp_path, "parm")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["EVERYDAY-parm.md", "everyday-parm.csv"]
    text = (tmp_path / "EVERYDAY-parm.md").read_text(encoding="utf-8")
    assert "--method parm --out" in text and "(everyday-parm.csv)" in text and "with `parm`" in text
