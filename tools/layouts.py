"""Layouts of quantised weights against the packages that write them, in an environment beside ours.

    .venv/bin/python tools/layouts.py

The environment lies in build/conformance/layouts; it has these packages without what they depend on, and reads torch
and transformers from ours. What is tried stands in tests/conformance/layouts/check.py.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "conformance" / "layouts"
PACKAGES = ("bitsandbytes==0.50.2", "compressed-tensors==0.20.1", "loguru==0.7.3", "autoawq==0.2.7.post3",
            "auto-gptq==0.7.1")  # fmt: skip


def environment() -> Path:
    """The interpreter, made where it is not there or has other packages."""
    python, stamp, wanted = PLACE / "bin" / "python", PLACE / "installed", " ".join(PACKAGES)
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PLACE)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, *PACKAGES], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    check = ROOT / "tests" / "conformance" / "layouts" / "check.py"
    sys.exit(subprocess.run([environment(), check, sysconfig.get_paths()["purelib"]]).returncode)
