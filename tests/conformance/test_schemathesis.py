"""schemathesis over our OpenAPI document, every check on."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
from seeds import fresh_seed
from server_process import Server

CONFIG = Path(__file__).parent / "schemathesis.toml"
EXAMPLES = 12
"""Of every endpoint. The phase "coverage" walks through all limits of all fields; it takes minutes, so run it by hand
when the document changes: the command below with ``--phases coverage``."""


def test_the_server_does_what_its_document_says(server: Server, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG), "run",
        f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {server.key}",
        "--checks", "all", "--phases", "examples,fuzzing", "--max-examples", str(EXAMPLES),
        "--seed", str(fresh_seed()), "--no-shrink", "--continue-on-failure", "--request-timeout", "60",
        "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout[-20000:] + found.stderr[-2000:]
    document = httpx.get(f"{server.url}/openapi.json").json()
    operations = sum(len(methods) for methods in document["paths"].values())
    assert operations >= 11 and re.search(rf"Tested: +{operations}$", found.stdout, re.MULTILINE), found.stdout
    server.wait(running=False)
