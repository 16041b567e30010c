"""``ladle init``: from folders as they are to a family that is served."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from guided_folder import write_head, write_pblora
from hub_cache import put, use_cache
from routed_folder import write_router_head
from tiny_models import write_full_member, write_lora_member, write_tiny_base
from typer.testing import CliRunner

from ladle.clients.lazy_commands import GROUP
from ladle.merging.family.family import load_family
from ladle.server.commands import init

app = typer.Typer()
app.command("init")(init.command)


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Path:
    """A working directory with a base and adapters."""
    monkeypatch.chdir(tmp_path)
    write_tiny_base(tmp_path / "base", "llama", seed)
    for index, name in enumerate(("kind", "short", "judge")):
        write_lora_member(tmp_path / name, tmp_path / "base", seed + index)
    write_head(tmp_path / "judge", 32, seed)
    return tmp_path


def test_a_family_is_written_from_folders(home: Path, seed: int) -> None:
    write_full_member(home / "long", home / "base", seed)
    document = json.loads(
        run(
            "base", "--policy", "kind=kind", "--policy", "long", "--backbone", "kind=short", "--backbone", "long=judge",
            "--value", "kind=kind", "--value", "long=long", "--value", "kind=judge", "--beta", 0.7, "--out", "mine",
            "--json",
        )[0]
    )  # fmt: skip
    family = load_family(home / "mine")
    assert family.name == "mine" and family.objectives == ("kind", "long")
    assert family.singles == {"kind": "policy-kind", "long": "policy-long"} and family.backbones == ("kind", "long")
    assert {value.name: (value.kind, value.objective) for value in family.values} == {
        "value-kind": ("implicit", "kind"), "value-long": ("implicit", "long"), "value-kind-2": ("explicit", "kind"),
    }  # fmt: skip
    assert {"bone_soup", "rewarded_soup", "mage"} <= set(document["served"])
    assert document["default_method"] == "bone_soup" and "experts" in document["missing"]["fusion_route"]
    assert document["manifest"] == (home / "mine" / "family.toml").read_text()


def test_places_are_written_as_they_hold_from_the_family(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, home / "cache")
    put(home / "cache", "org/short-lora", home / "short", revision="v1")
    monkeypatch.setenv("HOME", str(home))
    text, _ = run("base", "--policy", "kind", "--policy", "short=org/short-lora@v1", "--policy", "judge=~/judge")
    assert 'model = "base"' in text and 'path = "kind"' in text
    assert 'path = "org/short-lora@v1"' in text and 'path = "~/judge"' in text
    assert "rewarded_soup" in text and "What others would need:" in text and "bone_soup: " in text
    shutil.move(home / "family.toml", home / "elsewhere.toml")
    text, _ = run(home / "base", "--policy", "kind", "--out", "deep/er")
    assert f'path = "{home / "kind"}"' in text
    os.chdir("/")
    assert load_family(home / "deep" / "er").name == "er"


def test_experts_router_and_a_pblora(home: Path, seed: int) -> None:
    write_pblora(home / "arm", home / "base", seed, 2)
    shutil.copytree(home / "judge", home / "router")
    write_router_head(home / "router", 2, 32, seed)
    run("base", "--expert", "math=kind", "--expert", "code=short", "--router", "router", "--out", "routed")
    assert load_family(home / "routed").experts == ("math", "code")
    objectives = ["--objective", "a", "--objective", "b"]
    served = json.loads(run("base", "--value", "arm", *objectives, "--out", "armed", "--json")[0])["served"]
    assert "parm" in served


def test_members_of_other_sizes_go_to_the_model_they_were_grown_from(home: Path, seed: int) -> None:
    for name, width in (("half", 16), ("tiny", 8)):
        write_tiny_base(home / name, "llama", seed, hidden_size=width, num_attention_heads=2, num_hidden_layers=1)
    write_lora_member(home / "code", home / "half", seed)
    write_full_member(home / "whole", home / "tiny", seed)
    (home / "router").mkdir()
    write_router_head(home / "router", 4, 8, seed)
    models = ["--model", "half=half", "--model", "tiny=tiny"]
    experts = [f for name in ("math=kind", "code=code", "verse=whole", "plain=half") for f in ("--expert", name)]
    text = run("base", *models, *experts, "--router", "router", "--value", "kind=code", "--out", "routed")[0]
    family = load_family(home / "routed")
    assert family.models.keys() == {"", "half", "tiny"} and family.router is not None and family.router.model == "tiny"
    assert [family.model_of(family.members_of[name]) for name in family.experts] == ["", "half", "tiny", "half"]
    assert family.values[0].model == "half" and 'base = "half"' in text
    assert {member.name: member.storage for member in family.members()}["plain"] == "plain"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--policy", "kind=nowhere"], 1, "no such folder"),
        (["--policy", "=x"], 1, "no such folder"),
        (["--policy", "kind="], 2, "NAME=FOLDER"),
        (["--policy", "a=kind", "--policy", "a=short"], 1, "a second entry"),
        (["--expert", "a=kind"], 1, "router: missing"),
        (["--backbone", "a=kind", "--beta", "0.7", "--objective", "x", "--objective", "y"], 1, "need"),
        (["--policy", "runs"], 1, "checkpoint-20 holds one"),
        (["--policy", "kind", "--name", "no/name"], 1, "name: 'no/name'"),
    ],
)
def test_what_cannot_be_served_leaves_nothing(home: Path, arguments: list[Any], code: int, words: str) -> None:
    for step in (9, 20):
        shutil.copytree(home / "kind", home / "runs" / f"checkpoint-{step}")
    _, errors = run("base", *arguments, "--out", "mine", code=code)
    assert words in errors.replace("\n", ""), errors
    assert not (home / "mine" / "family.toml").exists()


def test_a_manifest_that_is_there_stays(home: Path) -> None:
    (home / "family.toml").write_text("mine")
    assert "already" in run("base", "--policy", "kind", code=2)[1]
    assert (home / "family.toml").read_text() == "mine"


def test_a_member_of_another_base_is_refused_by_name(home: Path, seed: int) -> None:
    write_tiny_base(home / "wide", "llama", seed, hidden_size=48)
    write_lora_member(home / "other", home / "wide", seed)
    _, errors = run("base", "--policy", "kind", "--policy", "other", "--out", "mine", code=1)
    assert "other/adapter_model.safetensors: tensor" in errors.replace("\n", "")
    assert torch.is_grad_enabled()


def test_folders_are_offered_behind_a_name(home: Path) -> None:
    (home / "kind" / "inner").mkdir()
    assert init._places("k") == ["kind"] and init._places("x=k") == ["x=kind"]
    assert init._places("x=kind/") == ["x=kind/inner"] and init._places("x=nowhere/") == []
    assert f"{home}/kind" in init._places(f"{home}/k")


def test_it_is_a_command_of_ladle() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'init = "ladle.server.commands.init:command"' in text and GROUP in text
