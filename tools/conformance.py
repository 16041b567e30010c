"""Other people's clients that do not install beside our tests: each in an environment of its own, against a server.

    .venv/bin/python tools/conformance.py            # all of them, or those that are named

Environments lie in build/conformance, with the versions below; they are made on first use. What is tried of a client
stands in tests/conformance/clients: a script that is told the server's address and key.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ROOT / "tests" / "conformance" / "clients"
PLACE = ROOT / "build" / "conformance"
PATIENCE_S = 1800
"""A client that takes longer hangs. It is many times what it takes on a machine that has nothing else to do."""
NODE = ("langchain_js", "openai_node", "vercel_ai")
"""Clients of node. Their packages are one folder, as the lock file beside their scripts says."""
CLIENTS = {
    "autogen": ("autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5"),
    "dspy": ("dspy==3.4.1",),
    "guidellm": ("guidellm==0.8.1",),
    "instructor": ("instructor==1.17.0",),
    "langchain": ("langchain-openai==1.7.3", "langchain-anthropic==1.7.10"),
    "langgraph": ("langgraph==1.2.24", "langchain-openai==1.7.3"),
    "litellm": ("litellm==1.110.2",),
    "litellm_proxy": ("litellm[proxy]==1.108.7",),
    "llama_index": ("llama-index-llms-openai-like==0.8.1",),
    "llm": ("llm==0.36",),
    "pydantic_ai": ("pydantic-ai-slim[openai,anthropic]==2.68.0",),
}
"""What is installed for each client."""


def environment(name: str) -> Path:
    """The interpreter of a client's environment, made where it is not there or holds something else."""
    folder = PLACE / name
    python, stamp, wanted = folder / "bin" / "python", folder / "installed", " ".join(CLIENTS[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *CLIENTS[name]], check=True)
        stamp.write_text(wanted)
    return python


def modules() -> Path:
    """The folder with the packages of the clients of node, made where it is not there or holds something else."""
    lock = (CHECKS / "package-lock.json").read_bytes()
    folder = PLACE / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CHECKS / name, folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True)
        (folder / "complete").touch()
    return folder


def main(names: list[str]) -> int:
    """Try the clients ``names``, or all; the number of those that failed."""
    known = [*CLIENTS, *NODE]
    strange = [name for name in names if name not in known]
    if strange:
        sys.exit(f"error: {strange[0]!r} is no client; known: {', '.join(known)}")
    # The fixtures of our tests write the family and run the server.
    sys.path.insert(0, str(ROOT / "tests" / "fixtures"))
    write_tool_demo = import_module("conformance_families").write_tool_demo
    serve_family = import_module("server_process").serve_family

    failed = []
    with tempfile.TemporaryDirectory() as folder:
        demo = write_tool_demo(Path(folder) / "demo")
        with serve_family(demo, "--kv-memory", "24MiB", "--default-max-tokens", "64") as server:
            for name in names or known:
                # Nothing but the server is asked: not a provider, not a page with prices, nobody who counts users.
                told = {"PATH": os.environ["PATH"], "HOME": folder, "LADLE_URL": server.url, "LADLE_KEY": server.key}
                told["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
                told["LADLE_TOKENIZER"] = str(demo / "base")
                try:
                    if name in NODE:
                        command = ["node", str(CHECKS / f"check_{name}.mjs")]
                        told["LADLE_MODULES"] = str(modules())
                    else:
                        command = [str(environment(name)), str(CHECKS / f"check_{name}.py")]
                    subprocess.run(command, env=told, timeout=PATIENCE_S, check=True)
                    verdict = "passed"
                except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                    # The others are tried all the same.
                    verdict = f"failed ({error})"
                    failed.append(name)
                versions = ", ".join(CLIENTS.get(name, ("package-lock.json",)))
                print(f"{name}: {verdict} ({versions})", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
