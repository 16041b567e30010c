"""What `make docs` does: run every command and program of README and docs as written, on a fresh server of `demo`.

A block fails if it ends with an error, takes more than a minute, or prints nothing. Blocks that install, build, serve
or train are named and left to what tests them.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60
ADDRESS = "http://localhost:8000"
LONG = ("serve", "bench", "train", "sweep", "calibrate", "fit", "compare")
"""Commands of `ladle` that go on, or need what does; tests/docs compares their options with their help."""
FOREIGN = ("make", "pip", "accelerate", "torchrun", "docker", "kubectl", "npm", "lm_eval", "python", "helm")
FILES = {"rain.json": {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}}


@contextmanager
def served(log: Path) -> Iterator[None]:
    """`ladle serve demo` at the address that the documents name."""
    from ladle.recipes.sweeps.server import bound

    ladle = Path(sys.executable).with_name("ladle")
    with log.open("wb") as file:
        command = bound([str(ladle), "serve", "demo", "--default-max-tokens", "256"])
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        from ladle.clients import Client

        with Client(ADDRESS) as client:
            while not client.ready():
                if server.poll() is not None:
                    raise SystemExit(f"error: the server did not start; its log is {log}")
                time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.wait()


def why_not(language: str, text: str) -> str | None:
    """Why a block is not run here; None if it is."""
    if language == "python":
        named = re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)
        lacking = [name for name in named if find_spec(name) is None]
        return f"needs {lacking[0]}" if lacking else None
    words = shlex.split(text, comments=True)
    if words[0] in FOREIGN or words[0].startswith(("./", "sudo")):
        return f"{words[0]} is tested elsewhere"
    if words[0] == "ladle" and (words[1] in LONG or "FOLDER" in words):
        return "goes on, or needs a family of one's own"
    return None


def run(language: str, text: str, folder: Path) -> str:
    """What is wrong with a block; empty where nothing is."""
    program = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LADLE_URL": ADDRESS, "COLUMNS": "120"}
    try:
        said = subprocess.run(
            program, capture_output=True, text=True, cwd=folder, env=environment, timeout=SECONDS,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"took more than {SECONDS} s"
    if said.returncode:
        return (said.stdout + said.stderr).strip()[-600:] or f"ended with {said.returncode}"
    return "" if (said.stdout + said.stderr).strip() else "prints nothing"


def main() -> int:
    """Run all blocks; the exit status is 1 where one failed. Arguments: parts of places, such as README, to run only
    those."""
    sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
    fixtures = import_module("doc_blocks")
    pieces: list[tuple[str, str, str]] = []
    for block in fixtures.blocks():
        if block.language == "python":
            pieces.append((block.place, block.language, block.text))
        elif block.language in ("", "bash", "sh"):
            pieces += [(block.place, "bash", command) for command in fixtures.commands(block)]
    wanted = sys.argv[1:]
    pieces = [piece for piece in pieces if not wanted or any(part in piece[0] for part in wanted)]
    failures, skipped = 0, 0
    log = ROOT / "build" / "docs.log"
    log.parent.mkdir(exist_ok=True)
    with served(log), tempfile.TemporaryDirectory() as place:
        for name, content in FILES.items():
            (Path(place) / name).write_text(json.dumps(content))
        for where, language, text in pieces:
            reason = why_not(language, text)
            if reason is not None:
                skipped += 1
                print(f"  left   {where}: {reason}")
                continue
            began = time.monotonic()
            fault = run(language, text, Path(place))
            failures += bool(fault)
            first = text.strip().splitlines()[0][:70]
            print(f"{'FAILED' if fault else '    ok'} {time.monotonic() - began:5.1f} s  {where}: {first}", flush=True)
            if fault:
                print("        " + fault.replace("\n", "\n        "))
    print(f"{len(pieces) - skipped} run, {failures} failed, {skipped} left to other tests")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
