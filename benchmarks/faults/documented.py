"""schemathesis against a server: requests generated from its OpenAPI document, every check on."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ladle.benchmarks.faults.server_under_test import ServerUnderTest
from ladle.recipes.sweeps.server import bound

# What no schema can say is refused with 400 as well, see tests/conformance/schemathesis.toml.
_CONFIG = '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "400", "404", "429", "503"]\n'


def run(server: ServerUnderTest, examples: int, seed: int) -> dict[str, object]:
    """Part of a row: up to ``examples`` requests of every endpoint."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "schemathesis.toml"
        config.write_text(_CONFIG)
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run",
            f"{server.url}/openapi.json", "--checks", "all", "--phases", "examples,fuzzing",
            "--max-examples", str(examples), "--seed", str(seed), "--no-shrink", "--continue-on-failure",
            "--request-timeout", "120", "--generation-database", "none", "--no-color",
            "--exclude-path-regex", "^/v1/admin/",  # which needs a key that this server does not ask for
        ]  # fmt: skip
        run = subprocess.run(bound(command), cwd=folder, capture_output=True, text=True, check=False)
    cases = re.search(r"(\d+) generated", run.stdout)
    return {
        "documented": int(cases[1]) if cases else 0,
        "documented_wrong": "" if run.returncode == 0 else run.stdout[-2000:] or run.stderr[-2000:],
    }
