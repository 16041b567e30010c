"""The figures of the study of rankings, from answers whose worth is known."""

import csv
import gzip
import random
from pathlib import Path

import pytest
from seeds import fresh_seed
from typer.testing import CliRunner

from ladle.recipes.rank_study import OBJECTIVES, app

WORDS = "one two three four five six seven"


def _write(file: Path, rows: list[dict[str, object]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_kept_answer_is_worth_what_its_score_says(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    base = [
        {"setting": "base", **{f"reward_{name}": rng.gauss(3, 2) for name in OBJECTIVES}} for _ in range(20)
    ]  # fmt: skip
    _write(tmp_path / "samples.csv.gz", [*base, {**base[0], "setting": "other", "reward_simple": 1e9}])
    rows: list[dict[str, object]] = []
    for prompt in range(12):
        for place in range(4):
            reward = rng.gauss(0, 1)
            rows.append({
                "prompt": prompt, "preference": "0 1 0", "place": place, "tokens": 5 + place,
                "likelihood": -reward, "explicit": 2 * reward, "explicit_merged": reward, "text": WORDS,
                "reward_positive": rng.gauss(0, 1), "reward_simple": reward, "reward_concise": 7,
            })  # fmt: skip
    _write(tmp_path / "answers.csv.gz", rows)
    result = CliRunner().invoke(app, ["figures", "--out", str(tmp_path), "--sweep", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / "best.csv").open(encoding="utf-8") as stream:
        table = {row["by"]: row for row in csv.DictReader(stream)}
    simple = [float(str(row["reward_simple"])) for row in base]
    mean = sum(simple) / len(simple)
    deviation = (sum((value - mean) ** 2 for value in simple) / len(simple)) ** 0.5
    best, worst, all_of_them = [], [], []
    for start in range(0, len(rows), 4):
        own = [(float(str(row["reward_simple"])) - mean) / deviation for row in rows[start : start + 4]]
        best.append(max(own))
        worst.append(min(own))
        all_of_them += own
    for by, values in (("explicit", best), ("explicit_merged", best), ("rewards", best), ("one", all_of_them)):
        assert float(table[by]["mu_z"]) == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert float(table["likelihood"]["mu_z"]) == pytest.approx(sum(worst) / len(worst), abs=1e-3)
    assert float(table["explicit"]["over_one_low"]) > 0 and float(table["likelihood"]["over_one_high"]) < 0
    assert "0.50 of the ensemble's spread, correlation within a prompt 1.00" in result.output
    assert table["explicit"]["degenerate"] == "0.0"
