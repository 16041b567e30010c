"""What `make gpu` does: the tests and benchmarks that need a GPU, where there is one."""

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("decode", "serve", "merge")


def main() -> int:
    if not torch.cuda.is_available():
        print("No GPU is present (or this PyTorch cannot use it): the GPU tests and benchmarks were SKIPPED.")
        return 0
    print(f"GPU: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}", flush=True)
    scripts = Path(sys.executable).parent
    ladle = str(scripts / "ladle")
    commands = [[str(scripts / "pytest"), "-m", "gpu"]]  # not `python -m pytest`: that puts the repository on sys.path
    commands += [[ladle, "bench", name] for name in BENCHMARKS]
    failed = [command for command in commands if subprocess.run(command, cwd=ROOT, check=False).returncode]
    for command in failed:
        print(f"failed: {' '.join(command)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
