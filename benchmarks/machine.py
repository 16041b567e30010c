"""What a figure was measured on: written beside every committed result."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """Processor name, core count and what of it matters here."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    name = capability.get("cpu_name") or platform.processor() or platform.machine()
    flags = [flag for flag in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16") if capability.get(flag)]
    return f"{name}, {torch.get_num_threads()} threads ({' '.join(flags)})"


def versions() -> str:
    return f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], *, append: bool = False) -> None:
    """Write ``rows`` with hardware and versions in every one of them; with ``append`` after those already in the file.

    Columns that only some rows have are empty in the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stamped: list[Mapping[str, object]] = []
    if append and path.exists():
        with path.open(newline="") as file:
            stamped = list(csv.DictReader(file))
    stamped += [{**row, "hardware": hardware(), "versions": versions()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in stamped for name in row)))
        writer.writeheader()
        writer.writerows(stamped)
