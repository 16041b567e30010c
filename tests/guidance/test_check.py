import json
from pathlib import Path

import numpy as np
import pytest
import typer
from guided_folder import write_guided_family
from tiny_models import write_family
from typer.testing import CliRunner, Result

from ladle.guidance.check import check_family, examine_family
from ladle.guidance.diagnostics.probe_prompts import read_prompts
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family
from ladle.server.commands.check import command


def test_the_report_holds_what_was_loaded(root: Path, family: Family) -> None:
    report = check_family(root)
    assert report.members == tuple(family.members()) and report.objectives == family.objectives
    assert family.matrix is not None and report.condition == pytest.approx(np.linalg.cond(family.matrix))
    assert report.default_method == "bone_soup" and report.presets == ("cheerful",)
    assert report.bank_bytes == 4 * sum(member.numel() for member in family.low_rank.values())
    assert report.merge_bytes == family.base.nbytes()
    corners = {(corner.method, corner.preference): corner.coefficients for corner in report.corners}
    assert len(corners) == 8  # three corners and the middle, for two merging methods
    for index, objective in enumerate(family.objectives):
        expected = np.linalg.solve(family.matrix.T, np.eye(3)[index])
        np.testing.assert_allclose(corners["bone_soup", objective].values, expected, atol=1e-12)
    np.testing.assert_allclose(corners["rewarded_soup", "uniform"].values, 1 / 3)


def test_it_prints_as_text_and_json(root: Path) -> None:
    report = check_family(root)
    document = json.loads(json.dumps(report.as_dict()))
    assert document["methods"]["base"] == {"available": True, "reason": None}
    assert {member["name"] for member in document["members"]} >= {"bone-positive", "only-simple"}
    assert document["corners"][0]["coefficients"].keys() == {"bone-positive", "bone-simple", "bone-concise"}
    text = report.text()
    for part in (
        "family tiny",
        "bone-positive",
        "condition number 1.818",
        "rewarded_soup",
        "+1.5455",
        "low-rank",
        "full",
    ):
        assert part in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_warnings_reach_the_report(tmp_path: Path) -> None:
    report = check_family(write_family(tmp_path, n=2, beta=0.504, policies=False))
    assert any("ill-conditioned" in warning for warning in report.warnings)
    assert any("bone_soup at positive" in warning and "large" in warning for warning in report.warnings)
    assert "warning: " in report.text()
    assert sum("ill-conditioned" in warning for warning in report.warnings) == 1


def test_a_broken_promise_fails_the_check(tmp_path: Path) -> None:
    root = write_family(
        tmp_path, policies=False, extra='[presets.x]\nmethod = "rewarded_soup"\npreference = {simple = 1}'
    )
    with pytest.raises(FamilyError, match=r"presets\.x\.method"):
        check_family(root)


def test_a_family_is_examined_on_prompts_of_a_file(root: Path, family: Family, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("How deep is a lake?\n\n  And a river?  \n")
    told: list[tuple[int, int]] = []
    report = examine_family(family, file, lambda done, total: told.append((done, total)))
    assert report.prompts == 2 and report.tokens > 0 and told[-1][0] == told[-1][1] > 0
    assert {found.kind for found in report.differences} == {"policies"}  # the family has no values
    assert len(report.barriers) == 3 and len(report.compatibility) == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "1 to 64 prompts"),
        ("a.txt", "one more\n" * 65, "65 in"),
        ("a.jsonl", '{"prompt": "fine"}\n{"text": "not"}\n', 'prompts:2.*key "prompt"'),
        ("a.jsonl", "not JSON\n", "prompts:1"),
        ("a.txt", "long " * 400, r"prompts\[0\].*tokens"),
    ],
)
def test_bad_prompts_are_refused(family: Family, tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        examine_family(family, file)


def test_prompts_that_are_no_text_are_refused(family: Family, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        examine_family(family, file)


def test_a_jsonl_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "split": "test"}\n{"prompt": "two"}\n')
    assert read_prompts(file) == ("one", "two")


def test_the_command_prints_and_writes_json(tmp_path: Path) -> None:
    root = write_guided_family(tmp_path / "f")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How deep is a lake?\n")
    app = typer.Typer()
    app.command()(command)

    def run(*options: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(root), *map(str, options)], env={"COLUMNS": "120"})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    deep = json.loads(run("--deep", "--prompts", prompts, "--json").stdout)["deep"]
    assert deep["prompts"] == 1 and {entry["kind"] for entry in deep["differences"]} == {"implicit", "explicit"}
    assert deep["barriers"][0]["verdict"] in ("connected", "barrier") and deep["limits"]["divergence"] == 2.0
    printed = run("--deep", "--prompts", prompts)
    for part in (
        "merged against ensembled values",
        "linear mode connectivity",
        "base (bone_soup) and guide",
        "tuned-p",
    ):
        assert part in printed.stdout
    assert all(f"warning: {line}" in printed.stderr for line in deep["warnings"])
    assert "deep" not in json.loads(run("--json").stdout)
    assert "--deep" in run("--prompts", prompts, code=2).stderr


def test_what_a_method_lacks_is_printed_literally(root: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(root)], env={"COLUMNS": "200"})
    assert "([[models]] with" in result.stdout  # no markup
