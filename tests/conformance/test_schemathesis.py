"""schemathesis over our OpenAPI document, every check on."""

import subprocess
import sys
from pathlib import Path

from server_process import Server
from tiny_engine import fresh_seed

CONFIG = Path(__file__).parent / "schemathesis.toml"
SECONDS = 40
OPERATIONS = 11


def test_the_server_does_what_its_document_says(server: Server, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "run",
        f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {server.key}",
        "--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--max-time", str(SECONDS),
        "--seed", str(fresh_seed()), "--no-shrink", "--continue-on-failure", "--request-timeout", "60",
        "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout[-20000:] + found.stderr[-2000:]
    assert f"Tested: {OPERATIONS}" in found.stdout, found.stdout
    server.wait(running=False)
