"""Every example of the documentation runs: programs, commands and requests against a live server of a tiny family that
has what the built-in one has, manifests through their parser."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest
from calibrations import calibrate_identically
from doc_blocks import ROOT, Block, blocks, commands
from live_server import served
from playground_folder import write_playground_family
from tool_templates import HERMES_TEMPLATE
from typer.testing import CliRunner
from vector_folder import write_vectors

from ladle.clients.sdk_commands import app
from ladle.merging.family.manifest import load_manifest

BLOCKS = blocks()
FILES = {"rain.json": json.dumps({"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]})}
"""What commands read."""
ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_playground_family(tmp_path_factory.mktemp("docs"), seed=11)
    manifest = root / "family.toml"
    manifest.write_text(manifest.read_text().replace('name = "tiny"', 'name = "demo"', 1))
    (root / "base" / "chat_template.jinja").write_text(HERMES_TEMPLATE)
    calibrate_identically(root)
    write_vectors(root, 11, ["positive-tone"])
    return root


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder, default_max_tokens=512, max_sequences=20, kv_memory=16 << 20) as (address, _):
        yield address


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def test_every_block_is_of_a_kind_that_is_run() -> None:
    strange = [
        block.place
        for block in BLOCKS
        if block.language not in ("", "bash", "sh", "python", "json", "toml", "javascript", "mermaid")
    ]
    assert not strange and BLOCKS


@pytest.mark.parametrize("block", of("python"))
def test_programs(block: Block, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in re.findall(r"^\s*(?:from|import) (\w+)", block.text, re.MULTILINE):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed here; tests/conformance runs its examples")
    monkeypatch.setenv("LADLE_URL", url)
    names: dict[str, object] = {"__name__": "example"}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(ADDRESS.sub(url, block.text), block.place, "exec"), names)
    finally:
        # An example may leave its client to the end of the program.
        for value in names.values():
            if not isinstance(value, type) and callable(close := getattr(value, "close", None)):
                close()


COMMANDS = [
    pytest.param(command, id=f"{block.place}-{index}")
    for block in BLOCKS
    if block.language in ("", "bash", "sh")
    for index, command in enumerate(commands(block))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, url: str, folder: Path, tmp_path: Path) -> None:
    words = shlex.split(command, comments=True)
    if words[0] in ("accelerate", "torchrun"):
        words = words[words.index("ladle") :]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        extras = {extra for word in words for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extras <= set(project["optional-dependencies"])
        assert all((ROOT / word).exists() for word in words if word.endswith(".txt"))
    elif words[0] == "lm_eval":
        pytest.skip("tests/conformance runs it")
    elif words[0] == "python" or (
        words[0] == "ladle" and words[1] in ("serve", "bench", "train", "sweep", "calibrate", "fit", "compare")
    ):
        # These go on for long, or need what does; whether they understand what is asked is seen without doing it.
        known(words)
    else:
        run(ADDRESS.sub(url, command), url, folder, tmp_path)


def known(words: list[str]) -> None:
    program = [sys.executable, "-m", words[2]] if words[0] == "python" else ["ladle", *words[1:2]]
    if words[:2] == ["ladle", "bench"]:
        program = ["ladle", *words[1:3]]
    elif words[0] == "python":
        assert words[1] == "-m", words
    said = help_of(tuple(program))
    for option in (word for word in words if word.startswith("--")):
        assert option in said, f"{option} is not in the help of {' '.join(program)}"


@cache
def help_of(program: tuple[str, ...]) -> str:
    """Several documents name the same commands. The command line answers here: what its commands import is imported."""
    if program[0] == "ladle":
        told = CliRunner().invoke(app, [*program[1:], "--help"], env={"COLUMNS": "200"})
        assert told.exit_code == 0, told.output
        return told.output
    said = subprocess.run([*program, "--help"], capture_output=True, text=True, env=environment(""), timeout=120)
    assert said.returncode == 0, said.stderr
    return said.stdout


def run(command: str, url: str, folder: Path, place: Path) -> None:
    # The built-in family's own files are large: the tiny one stands in for them.
    command = re.sub(r"^(ladle (?:merge|check|compress)) demo\b", rf"\1 {folder}", command)
    for name, text in FILES.items():
        (place / name).write_text(text)
    outcome = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("curl ", "curl -sS --fail-with-body ", 1)],
        capture_output=True, text=True, cwd=place, env=environment(url), timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr


def environment(url: str) -> dict[str, str]:
    """With this environment's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LADLE_URL": url, "COLUMNS": "200"}


@pytest.mark.parametrize("block", of("json"))
def test_requests(block: Block, url: str) -> None:
    body = json.loads(block.text)
    path = "/v1/chat/completions"
    if "messages" not in body and "prompt" not in body:  # a steering object by itself
        path, body = "/v1/generate", {"prompt": "Once", "steering": body}
    body = {**body, "model": "demo", "max_tokens": 8}
    answer = httpx.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_manifests(tmp_path: Path) -> None:
    """The first one is whole, each of the others something to add to it."""
    whole = ""
    # Not the one that describes a package.
    for block in (block for block in BLOCKS if block.language == "toml" and not block.text.startswith("[project]")):
        whole = whole if not whole else whole + "\n"
        whole += block.text
        file = tmp_path / "family.toml"
        file.write_text(whole)
        load_manifest(file)
    assert whole
