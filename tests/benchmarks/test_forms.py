"""The measurement of forms, end to end: its figures mean nothing on a tiny model."""

from pathlib import Path

from tiny_engine import family_of

from ladle.benchmarks import forms


def test_a_row_a_batch_size(tmp_path: Path) -> None:
    rows = list(forms.run(family_of(tmp_path), "float32", [1, 3], 2))
    assert [row["batch"] for row in rows] == [1, 3]
    assert all(float(str(row[name])) > 0 for row in rows for name in ("plain_ms", "form_ms", "compile_ms", "mask_us"))
