"""What the report says about values and further models, against the files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from guided_folder import write_guided_family
from reference_weights import read_head
from safetensors import safe_open
from tiny_models import VOCAB_SIZE, write_family

from ladle.merging.family.family import load_family
from ladle.merging.family.report import Report, build_report


def report_of(root: Path) -> Report:
    return build_report(load_family(root), "base", {"base": (True, "")}, ())


def sizes(folder: Path) -> tuple[int, int]:
    """(parameters, bytes) of a folder's safetensors, the scalar head apart."""
    parameters = nbytes = 0
    for file in folder.glob("*model*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            for name in list(stream.keys()):
                tensor = stream.get_tensor(name)
                parameters += tensor.numel()
                nbytes += tensor.nbytes
    return parameters, nbytes


@pytest.mark.parametrize("kind", ["singles", "rows", "small"])
def test_values_and_models_are_reported(tmp_path: Path, kind: str, seed: int) -> None:
    root = write_guided_family(tmp_path / "family", "llama", seed, kind=kind)
    family, report = load_family(root), report_of(root)
    assert [(model.name, model.amateur, model.drafts, model.hidden, model.vocabulary) for model in report.models] == [
        ("small", False, True, 24, VOCAB_SIZE),
        ("amateur", True, False, 24, VOCAB_SIZE),
    ]
    for model in report.models:
        assert (model.parameters, model.bytes) == sizes(root / model.name)
        assert model.architecture == "llama" and model.folder == str(root / model.name)
        assert model.members == tuple(value.name for value in family.values if value.model == model.name)
    values = {value.name: value for value in report.values}
    assert list(values) == [value.name for value in family.values]
    for value in family.values:
        line = values[value.name]
        assert (line.kind, line.model, line.system, line.anti) == (value.kind, value.model, value.system, value.anti)
        assert line.weights == value.name and line.reference == (
            None if value.kind == "explicit" else value.name != "arm"
        )
        if value.kind == "explicit":
            weight, bias = read_head(root / "values" / value.name)
            assert line.head is not None
            assert line.head["bias"] == bias and line.head["norm"] == pytest.approx(float(weight.norm()), rel=1e-5)
        else:
            assert line.head is None
        if value.rewards is not None:
            assert line.trained_on == ", ".join(f"{weight:g}" for weight in value.rewards)
        elif value.objective is not None:
            assert line.trained_on == value.objective
    order = "simple, positive" if kind == "rows" else "positive, simple"
    assert values["arm"].trained_on == f"the preference over {order}"
    # Every member's size is that of its file, whatever it was turned into.
    for row in report.members:
        folder = root / ("values" if row.kind == "value" else "adapters") / row.name
        assert (row.parameters, row.bytes) == sizes(folder), row.name
    deltas = [member for model in family.models.values() for member in model.low_rank.values()]
    assert report.bank_bytes == 4 * sum(member.numel() for member in deltas)
    document = json.loads(json.dumps(report.as_dict()))
    assert [value["name"] for value in document["values"]] == list(values)
    assert document["models"][1]["amateur"] is True
    text = report.text()
    assert "further models" in text and "the preference over" in text and "amateur" in text
    for name in values:
        assert name in text


def test_shared_weights_are_said_to_be_shared(tmp_path: Path, seed: int) -> None:
    extra = """
[[values]]
name = "tuned"
kind = "implicit"
path = "adapters/only-positive"
objective = "positive"
"""
    root = write_family(tmp_path / "family", "llama", seed, n=2, extra=extra)
    report = report_of(root)
    (line,) = report.values
    assert line.weights == "only-positive" and "weights of only-positive" in report.text()
    rows = {row.name: row for row in report.members}
    assert replace(rows["tuned"], name="only-positive", kind="policy") == rows["only-positive"]
    # They are in the bank once.
    assert report.bank_bytes == report_of(write_family(tmp_path / "plain", "llama", seed, n=2)).bank_bytes


def test_columns_that_say_nothing_are_left_out(tmp_path: Path, seed: int) -> None:
    extra = """
[[models]]
name = "twin"
model = "base"
"""
    report = report_of(write_family(tmp_path / "family", "llama", seed, n=2, extra=extra))
    header = next(header for title, header, _ in report.tables() if title == "further models")
    assert header == ["name", "architecture", "parameters", "size", "vocabulary", "hidden"]


def test_families_without_guidance_have_no_such_tables(tmp_path: Path, seed: int) -> None:
    report = report_of(write_family(tmp_path / "family", "llama", seed, n=2))
    assert report.models == () and report.values == ()
    assert not {"further models", "values"} & {title for title, _, _ in report.tables()}
