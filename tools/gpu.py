"""What `make gpu` does: the tests that need a GPU, then ops and decoding measured on it.

python tools/gpu.py [--only tests|ops|decode] [--shapes 135M,1.5B,8B] [--batches 1,8,16,32,64,128] [--rounds 5]
    [--no-cuda-graphs]
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "ops", "decode")


def gpu_tests() -> list[str]:
    """The files that have tests for a GPU. To collect all others takes what all others import."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if re.search(r"\bMARKS\b|mark\.gpu\b", file.read_text())]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Tests and benchmarks that need a GPU.")
    parser.add_argument("--shapes", default="135M,1.5B,8B", help="sizes of the models that are decoded with")
    parser.add_argument("--batches", default="1,8,16,32,64,128", help="batch sizes that are measured")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of interleaved settings")
    parser.add_argument("--only", choices=PARTS, help="one part of it; default: all")
    parser.add_argument("--out", type=Path, help="CSV file, added to; default: benchmarks/results/GPU.csv")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="decode without recordings, for comparison")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("make gpu: no GPU is present, or this PyTorch cannot use it; nothing was tested and nothing measured")
        return 2
    from ladle.benchmarks.gpu import figures as gpu
    from ladle.benchmarks.random_family import SHAPES

    names, batches = options.shapes.split(","), [int(batch) for batch in options.batches.split(",")]
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"--shapes: {unknown[0]!r}; known: {', '.join(SHAPES)}")
    name = torch.cuda.get_device_name()
    print(f"GPU: {name}, PyTorch {torch.__version__}", flush=True)
    parts = (options.only,) if options.only else PARTS
    failed = 0
    if "tests" in parts:
        # -P: not with the repository on sys.path, whose folders are no packages.
        tests = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", *gpu_tests()]
        failed = subprocess.run(tests, cwd=ROOT, check=False).returncode
        if failed:
            print(f"make gpu: the tests failed (exit code {failed}); measuring all the same", flush=True)
    if parts != ("tests",):
        out = options.out or gpu.results_file(f"{name} without graphs" if options.no_cuda_graphs else name)
        wanted = names if "decode" in parts else []
        gpu.run(torch.device("cuda"), wanted, batches, options.rounds, out, "ops" in parts, not options.no_cuda_graphs)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
