"""The figures of the study of rankings, from answers whose worth is known."""

import csv
import gzip
import random
import statistics
from pathlib import Path

import pytest
from seeds import fresh_seed
from typer.testing import CliRunner

from ladle.recipes.studies.rank_study import OBJECTIVES, app

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
                "prompt": prompt, "preference": ("0 0.5 0.5", "0 1 0")[prompt % 2], "place": place, "tokens": 5 + place,
                "likelihood": -reward, "explicit": 2 * reward, "explicit_merged": reward, "text": WORDS,
                "reward_positive": rng.gauss(0, 1), "reward_simple": reward, "reward_concise": reward,
            })  # fmt: skip
    _write(tmp_path / "answers.csv.gz", rows)
    result = CliRunner().invoke(app, ["figures", "--out", str(tmp_path), "--sweep", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with (tmp_path / "best.csv").open(encoding="utf-8") as stream:
        table = {row["by"]: row for row in csv.DictReader(stream)}
    best, worst, all_of_them = [], [], []
    for start in range(0, len(rows), 4):
        weights = [float(weight) for weight in str(rows[start]["preference"]).split()]
        own = [0.0] * 4
        for name, weight in zip(OBJECTIVES, weights, strict=True):
            ours = [float(str(row[f"reward_{name}"])) for row in base]
            mean, deviation = statistics.fmean(ours), statistics.pstdev(ours)
            for place in range(4):
                own[place] += weight * (float(str(rows[start + place][f"reward_{name}"])) - mean) / deviation
        best.append(max(own))
        worst.append(min(own))
        all_of_them += own
    for by, values in (("explicit", best), ("explicit_merged", best), ("rewards", best), ("one", all_of_them)):
        assert float(table[by]["mu_z"]) == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert float(table["likelihood"]["mu_z"]) == pytest.approx(sum(worst) / len(worst), abs=1e-3)
    assert float(table["explicit"]["over_one_low"]) > 0 and float(table["likelihood"]["over_one_high"]) < 0
    assert float(table["explicit"]["over_likelihood"]) == pytest.approx(
        float(table["explicit"]["mu_z"]) - float(table["likelihood"]["mu_z"]), abs=2e-3
    )
    with (tmp_path / "merged.csv").open(encoding="utf-8") as stream:
        (even, corner, mixed) = csv.DictReader(stream)
    assert (even["preference"], corner["preference"]) == ("0 0.5 0.5", "0 1 0")
    assert mixed["preference"] == "mixed" and mixed["prompts"] == even["prompts"] == corner["prompts"] == "6"
    for row in (even, corner, mixed):
        assert (row["kept"], row["correlation"], row["lost"]) == ("0.5", "1.0", "0.0")
    assert table["explicit"]["degenerate"] == "0.0"
