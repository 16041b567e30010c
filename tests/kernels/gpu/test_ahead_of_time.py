"""Every kernel in every configuration compiles for the GPUs we name, none of which is here, and spills no registers.

Every state of the code draws for which GPU each configuration is compiled here; ``make kernels`` compiles all of them
for all GPUs, which takes three times as long.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from seeds import fresh_seed

pytest.importorskip("triton", reason="Triton is not on this platform")

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "compile_kernels.py"
TARGETS = ("sm_80", "sm_90", "gfx942")


@pytest.fixture(scope="module")
def report() -> list[dict[str, object]]:
    command = [sys.executable, str(TOOL)]
    if "LADLE_ALL_GPUS" not in os.environ:
        command += ["--each-for-one", str(fresh_seed())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


@pytest.mark.parametrize("target", TARGETS)
def test_all_compile_and_none_spills(report: list[dict[str, object]], target: str) -> None:
    rows = [row for row in report if row["target"] == target]
    assert rows
    failed = [f"{row['name']}: {row['error']}" for row in rows if "error" in row]
    assert not failed, "\n".join(failed)
    spilled = [f"{row['name']}: {row['spills']}" for row in rows if row["spills"]]
    assert not spilled, "\n".join(spilled)
    assert all(int(str(row["registers"])) > 0 for row in rows)


def test_every_module_with_kernels_has_variants(report: list[dict[str, object]]) -> None:
    """A module that is forgotten is not compiled, and nothing would say so."""
    kernels = {path.stem for path in (ROOT / "kernels" / "gpu").glob("*.py") if "@triton.jit" in path.read_text()}
    assert {str(row["name"]).split()[0] for row in report} == kernels
