"""What ``make gpu`` measures and how it is told: a file of figures a GPU, and a table of the same."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ladle.benchmarks.gpu import decode_shapes, goals
from ladle.benchmarks.gpu import ops as kernels
from ladle.benchmarks.gpu.device_timer import DeviceTimer
from ladle.benchmarks.machine import RESULTS, hardware, versions
from ladle.benchmarks.random_family import SHAPES

COLUMNS = (
    "part", "name", "case", "batch", "dtype", "ms", "compared_with", "compared_ms", "compared_over_this", "floor_ms",
    "share_of_copy", "copy_GB_per_s", "tokens_per_s", "hardware", "versions",
)  # fmt: skip


def measure(
    device: torch.device,
    sizes: kernels.Sizes | None,
    shapes: Mapping[str, Mapping[str, Any]],
    batches: Sequence[int],
    *,
    rounds: int = 5,
    repeats: int = 20,
    dtype: str = "bfloat16",
    small: bool = False,
    cuda_graphs: bool = True,
) -> Iterable[dict[str, object]]:
    """All rows, each with the columns ``COLUMNS``: first the ops, unless ``sizes`` is None, then decoding. ``small``:
    see ``DeviceTimer``. ``cuda_graphs``: see ``EngineConfig``."""
    stamp = {"hardware": hardware(), "versions": f"{versions()}, triton {_triton()}"}
    timer = DeviceTimer(device, small)
    for row in kernels.run(timer, sizes, repeats) if sizes is not None else ():
        yield _row(stamp, op_row(row))
    plain: dict[tuple[object, object], float] = {}
    for row in decode_shapes.run(shapes, batches, rounds, timer, dtype, cuda_graphs):
        key = (row["model"], row["batch"])
        if row["setting"] == "plain":
            plain[key] = float(str(row["step_ms"]))
        yield _row(stamp, decode_row(row, plain[key]))


def op_row(row: Mapping[str, Any]) -> dict[str, object]:
    """A row of ``kernels.run`` in the columns of the file."""
    return {
        "part": "op",
        "name": row["op"],
        "case": row["size"],
        "dtype": row["dtype"],
        "ms": round(row["kernel_us"] / 1e3, 6),
        "compared_with": "torch eager",
        "compared_ms": round(row["torch_us"] / 1e3, 6),
        "compared_over_this": row["times_faster"],
        "floor_ms": round(row["floor_us"] / 1e3, 6),
        "share_of_copy": row["share_of_copy"],
        "copy_GB_per_s": row["copy_GB_per_s"],
    }


def decode_row(row: Mapping[str, Any], plain_ms: float) -> dict[str, object]:
    """A row of ``decode_shapes.run`` in the columns of the file."""
    return {
        "part": "decode",
        "name": row["model"],
        "case": row["setting"],
        "batch": row["batch"],
        "dtype": row["dtype"],
        "ms": row["step_ms"],
        "compared_with": "plain decoding",
        "compared_ms": plain_ms,
        "compared_over_this": round(1 / row["over_plain"], 3),
        "floor_ms": row["floor_ms"],
        "share_of_copy": row["share_of_copy"],
        "copy_GB_per_s": row["copy_GB_per_s"],
        "tokens_per_s": row["tokens_per_s"],
    }


def _row(stamp: Mapping[str, str], row: Mapping[str, object]) -> dict[str, object]:
    return {column: row.get(column, stamp.get(column, "")) for column in COLUMNS}


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "absent"
    return str(triton.__version__)


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Write ``rows`` to ``path`` as they come, so that a run that ends early leaves what it measured; returns them.

    Rows that are there already stay, each until it is measured again: a run may be of one part or one shape.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {_key(row): row for row in read(path)}
    done: list[Mapping[str, object]] = []
    for row in rows:
        done.append(row)
        kept[_key(row)] = row
        fresh = path.with_name(f".{path.name}.new")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=COLUMNS)
            writer.writeheader()
            writer.writerows(kept.values())
        fresh.replace(path)
    return done


def read(path: Path) -> list[Mapping[str, object]]:
    """The rows of a file of figures; none where there is no such file, or one of other columns."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        return [dict(row) for row in rows] if tuple(rows.fieldnames or ()) == COLUMNS else []


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in ("part", "name", "case", "batch", "dtype"))


def table(rows: Sequence[Mapping[str, object]]) -> Table:
    """``rows`` for people."""
    shown = [column for column in COLUMNS if column not in ("hardware", "versions", "compared_with")]
    title = "ops against torch eager, decoding against plain decoding; floor: the fewest bytes at the copy's speed"
    result = Table(title=title, caption=f"{rows[0]['hardware']}; {rows[0]['versions']}" if rows else "")
    for column in shown:
        result.add_column(column, justify="left" if column in ("part", "name", "case", "dtype") else "right")
    for row in rows:
        result.add_row(*(str(row[column]) for column in shown))
    return result


def results_file(name: str, folder: Path = RESULTS) -> Path:
    """Where the figures of the GPU ``name`` belong."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.csv"


def fitting(shapes: Mapping[str, Mapping[str, Any]], free: int) -> dict[str, Mapping[str, Any]]:
    """The shapes that fit into ``free`` bytes of device memory: their weights in bfloat16 twice, as while they are
    packed, and as much as that again for state and members."""
    return {name: shape for name, shape in shapes.items() if 2 * 3 * _parameters(shape) < free}


def _parameters(shape: Mapping[str, Any]) -> int:
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    return shape["num_hidden_layers"] * (3 * hidden * inner + 4 * hidden**2) + 2 * shape["vocab_size"] * hidden


def run(
    device: torch.device,
    names: Sequence[str],
    batches: Sequence[int],
    rounds: int,
    out: Path,
    ops: bool = True,
    cuda_graphs: bool = True,
) -> None:
    """Measure on the GPU ``device``, write ``out``, print the table and what it says of the goals.

    ``names``: of shapes; ``ops``: these too. ``cuda_graphs``: see ``EngineConfig``.
    """
    console = Console()
    wanted = {name: SHAPES[name] for name in names}
    shapes = fitting(wanted, torch.cuda.mem_get_info(device)[0])
    for name in wanted.keys() - shapes.keys():
        console.print(f"{name}: left out, it does not fit into this GPU's memory")
    sizes = kernels.Sizes() if ops else None
    rows = write(out, measure(device, sizes, shapes, batches, rounds=rounds, cuda_graphs=cuda_graphs))
    console.print(table(rows))
    console.print(goals.table(read(out)))
    console.print(f"written to {out}")
