"""``ladle check``, ``merge`` and ``compress``."""

import json
from pathlib import Path

import pytest
import torch
import typer
from tiny_models import write_family
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ladle.merging.family.family import Family
from ladle.server.commands import check, compress, merge, serve
from ladle.server.commands.name_values import parse_pairs

app = typer.Typer()
for module in (check, merge, compress, serve):
    app.command(module.__name__.rpartition(".")[2])(module.command)


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def test_check_reports(family_folder: Path) -> None:
    document = json.loads(run("check", family_folder, "--json")[0])
    assert document["name"] == "tiny" and document["condition"] == pytest.approx(2.5)
    assert {member["name"] for member in document["members"]} >= {"bone-positive", "only-simple"}
    text, progress = run("check", family_folder)
    assert text.strip().splitlines()[-1].startswith("tiny can be served")
    assert "bone-positive" in text and "2.5" in text and "reading" in progress


def test_check_of_a_broken_family(tmp_path: Path) -> None:
    (tmp_path / "family.toml").write_text("name = 3\n")
    _, errors = run("check", tmp_path, code=1)
    assert errors.startswith("error: ") and "family.toml" in errors


def test_merge_writes_what_transformers_loads(family_folder: Path, family: Family, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    options = ["--preference", "positive=3,simple=1", "--json"]
    document = json.loads(run("merge", family_folder, *options, "--out", out)[0])
    assert document["method"] == "bone_soup" and document["preference"] == {"positive": 0.75, "simple": 0.25}
    assert document["coefficients"] == pytest.approx({"bone-positive": 1.125, "bone-simple": -0.125})
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64).state_dict()
    for path, low_rank in family.low_rank["bone-positive"].modules.items():
        other = family.low_rank["bone-simple"].modules[path]
        expected = family.base.tensor(f"{path}.weight").double()
        for part, coefficient in ((low_rank, 1.125), (other, -0.125)):
            expected += coefficient * part.scale * part.b.double() @ part.a.double()
        assert torch.allclose(merged[f"{path}.weight"], expected, atol=1e-6), path
    _, errors = run("merge", family_folder, *options, "--out", out, code=2)
    assert "merged" in errors


def test_merge_of_stated_coefficients(family_folder: Path, tmp_path: Path) -> None:
    options = ["--coefficients", "only-positive=0.5,bone-simple=-1", "--strength", "2", "--dtype", "bfloat16"]
    text, _ = run("merge", family_folder, *options, "--out", tmp_path / "merged")
    assert "only-positive=+1.0000" in text and "bone-simple=-2.0000" in text
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preference", "happy=1"], "preference.happy"),
        (["--preference", "positive"], "preference"),
        (["--preference", "positive=nan"], "preference"),
        (["--preference", "positive=1,positive=2"], "preference"),
        (["--preference", "positive=-1"], ">= 0"),
        (["--method", "magic", "--preference", "positive=1"], "bone_soup"),
        ([], "preference"),
    ],
)
def test_merge_refuses(family_folder: Path, tmp_path: Path, options: list[str], words: str) -> None:
    _, errors = run("merge", family_folder, *options, "--out", tmp_path / "out", code=2)
    assert words in errors and errors.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_compress(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "family", "llama", seed=2, full=["bone-positive"], policies=False)
    document = json.loads(run("compress", folder, "bone-positive", "--rank", 4, "--out", tmp_path / "low", "--json")[0])
    assert 0 < document["relative_error"] < 1 and all(entry["rank"] <= 4 for entry in document["tensors"])
    assert (tmp_path / "low" / "adapter_config.json").is_file()
    text, warning = run("compress", folder, "bone-positive", "--energy", 0.9, "--out", tmp_path / "other")
    assert "relative error" in text and "lost" in warning
    for options, words in (
        (["bone-positive"], "rank"),
        (["bone-positive", "--rank", 0], "rank"),
        (["nobody", "--rank", 4], "bone-positive"),
        (["bone-positive", "--rank", 1, "--max-error", 0.001], "max_error"),
    ):
        _, errors = run("compress", folder, *options, "--out", tmp_path / "third", code=2)
        assert words in errors
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("name", ["check", "merge", "compress", "serve"])
def test_help_has_an_example(name: str) -> None:
    assert f"Example: ladle {name} " in run(name, "--help")[0]


def test_commands_are_found_as_entry_points() -> None:
    from importlib.metadata import entry_points

    commands = {entry.name: entry.value for entry in entry_points(group="ladle.commands")}
    for name in ("check", "merge", "compress", "serve"):
        assert commands[name] == f"ladle.server.commands.{name}:command"


def test_pairs() -> None:
    assert parse_pairs(" a = .5 , b=-1e2", "x") == {"a": 0.5, "b": -100.0}
