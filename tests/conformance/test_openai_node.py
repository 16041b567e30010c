"""openai-node against a server process. Its package is installed once, under build/."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_blocks import blocks
from filelock import FileLock
from server_process import Server

HERE = Path(__file__).parent / "node"
BUILD = Path(__file__).resolve().parents[2] / "build"


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder with ``node_modules``, made by the lock file that is committed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    lock = (HERE / "package-lock.json").read_bytes()
    folder = BUILD / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "complete").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
            assert found.returncode == 0, found.stderr
            (folder / "complete").touch()
    return folder


def run(server: Server, modules: Path, case: str) -> dict:
    command = ["node", str(HERE / "check.mjs"), server.v1, server.key, str(modules), case]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    answer: dict = json.loads(found.stdout)
    return answer


@pytest.mark.parametrize("case", ["chat", "helper", "completions", "errors"])
def test_it_works_unchanged(server: Server, modules: Path, case: str) -> None:
    run(server, modules, case)


def test_streams_that_are_left_free_their_lanes(server: Server, modules: Path) -> None:
    with server.abandoned(3):
        run(server, modules, "abandon")


def test_the_lock_names_no_host() -> None:
    assert "://" not in (HERE / "package-lock.json").read_text()


def test_the_example_of_the_documentation(server: Server, modules: Path, tmp_path: Path) -> None:
    (example,) = [block.text for block in blocks() if block.language == "javascript"]
    example = example.replace("http://localhost:8000", server.url).replace('apiKey: "none"', f'apiKey: "{server.key}"')
    (tmp_path / "example.mjs").write_text(example)
    (tmp_path / "node_modules").symlink_to(modules / "node_modules")
    found = subprocess.run(
        ["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0 and found.stdout, found.stderr
