"""Compile every Triton kernel in every configuration, for GPUs that need not be there.

    python tools/compile_kernels.py [--only NAME] [--targets sm_80,sm_90,gfx942] [--each-for-one SEED] [--jobs N]

``--each-for-one`` compiles every variant for one of the targets, another one for another seed: a third of the work.

Prints one JSON list: name, target, seconds, and what the compilers report of the result: ``registers`` a thread,
``spills`` (bytes per thread on NVIDIA, where they lie on the stack and are all that does; registers on AMD), ``shared``
bytes per program; ``error`` instead where it does not compile. Exit code 1 if anything failed or spilled.
"""

from __future__ import annotations

import os

# Interpreted functions cannot be compiled, and triton.jit decides when a kernel's module is imported.
os.environ.pop("TRITON_INTERPRET", None)

import argparse
import importlib
import json
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


def modules() -> list[str]:
    """The modules of kernels/gpu/ that have variants; found in their source, for importing the others takes seconds."""
    files = sorted((ROOT / "kernels" / "gpu").glob("*.py"))
    return [path.stem for path in files if re.search(r"^def variants\(", path.read_text(), re.MULTILINE)]


def variants(only: str) -> list[Any]:
    """All variants whose name contains ``only``."""
    items = [item for name in modules() for item in importlib.import_module(f"ladle.kernels.gpu.{name}").variants()]
    names = [item.name for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        sys.exit(f"error: several variants are called {', '.join(twice)}")
    return [item for item in items if only in item.name]


def compile_one(variant: Any, target: str) -> dict[str, object]:
    """One line of the report."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    types = {name: kind.partition(":")[0] for name, kind in variant.signature.items()}
    types |= dict.fromkeys(variant.constexprs, "constexpr")
    aligned = [name for name, kind in variant.signature.items() if kind.endswith(":16")]
    row: dict[str, object] = {"name": variant.name, "target": target}
    start = time.perf_counter()
    try:
        if set(types) != set(kernel.arg_names):
            raise ValueError(f"the kernel takes {kernel.arg_names}, the variant names {sorted(types)}")
        attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        signature = {name: types[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, dict(variant.constexprs), attributes)
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=variant.options)
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["shared"] = compiled.metadata.shared
        row |= _of_nvidia(compiled.asm["cubin"]) if "cubin" in compiled.asm else _of_amd(compiled.asm["amdgcn"])
    except Exception as error:  # compilers raise what they like; each is one line of the report
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["error"] = f"{type(error).__name__}: {str(error)[:2000]}"
    return row


def _of_nvidia(cubin: bytes) -> dict[str, object]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if usage is None:
        raise ValueError(f"cuobjdump tells of no kernel: {report}")
    return {"registers": int(usage[1]), "spills": int(usage[2]) + int(usage[3])}


def _of_amd(assembly: str) -> dict[str, object]:
    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if match is None:
            raise ValueError(f"the assembly tells of no {key}")
        return int(match[1])

    return {"registers": number("vgpr_count"), "spills": number("vgpr_spill_count") + number("sgpr_spill_count")}


def _work(task: tuple[int, str]) -> dict[str, object]:
    return compile_one(_found[task[0]], task[1])


_found: list[Any] = []


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel in every configuration.")
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--each-for-one", type=int, metavar="SEED", help="every variant for one target only")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    targets = options.targets.split(",")
    if unknown := sorted(set(targets) - set(TARGETS)):
        parser.error(f"--targets: {unknown[0]!r}; known: {', '.join(TARGETS)}")
    _found[:] = variants(options.only)  # before the fork: the workers have them too
    tasks = [(index, target) for index in range(len(_found)) for target in targets]
    if options.each_for_one is not None:
        turn = random.Random(options.each_for_one)
        tasks = [(index, turn.choice(targets)) for index in range(len(_found))]
    if options.jobs > 1 and len(tasks) > 1:
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            rows = pool.map(_work, tasks, chunksize=1)
    else:
        rows = [_work(task) for task in tasks]
    print(json.dumps(rows, indent=1))
    return 1 if any("error" in row or row["spills"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
