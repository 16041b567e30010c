"""``ladle serve`` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from ladle.recipes.sweeps.server import bound, end
from ladle.server.engine.stats.idle_check import EVERY_S

_CODE = "import typer; from ladle.server.commands.serve import command; typer.run(command)"
_PAGE = os.sysconf("SC_PAGE_SIZE")
REST_S = EVERY_S + 1
"""An idle server has looked over its bookkeeping and given freed memory back by then."""


@dataclass(frozen=True)
class ServerUnderTest:
    """A running server.

    Attributes:
        url: where it serves.
        process: it, or what started it.
        log: the file of what it wrote to stderr.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def resident(self) -> int:
        """Bytes of memory that the process holds (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * _PAGE

    def samples(self) -> Mapping[tuple[str, str], float]:
        """Everything ``/metrics`` says, by name and labels (``key=value`` with commas between)."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as reply:
            text = reply.read().decode()
        return {
            (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
            for metric in text_string_to_metric_families(text)
            for sample in metric.samples
        }

    def held(self) -> dict[str, float]:
        """Sequences that run or wait, and the share of KV blocks in use."""
        samples = self.samples()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return {name: samples[f"ladle_{name}", ""] for name in names}

    def wait_idle(self, seconds: float = 60) -> dict[str, float]:
        """What is still held once nothing is, or after ``seconds``."""
        until = time.monotonic() + seconds
        while any((held := self.held()).values()) and time.monotonic() < until:
            time.sleep(0.05)
        return held

    def rest(self, seconds: float) -> None:
        """Wait until nothing is held, and then until freed memory was given back, ``seconds`` at most: ``REST_S`` are
        enough, for that comes before a look over the bookkeeping, at most every ``EVERY_S`` seconds."""
        checks = ("ladle_integrity_checks_total", "")
        self.wait_idle()
        before, until = self.samples()[checks], time.monotonic() + seconds
        while self.samples()[checks] == before and time.monotonic() < until:
            time.sleep(0.1)

    def failures(self) -> list[str]:
        """Log lines of exceptions; a server that only refuses writes none."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if "Traceback" in line]

    def unexplained(self) -> list[str]:
        """Access log lines, where there are any in JSON, of error answers for which they have no reason."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        records = [json.loads(line) for line in lines]
        return [json.dumps(line) for line in records if line.get("status", 0) >= 400 and not line.get("error_code")]


@contextmanager
def serve(
    family: Path,
    log: Path,
    options: Sequence[str] = (),
    start_s: float = 300,
) -> Iterator[ServerUnderTest]:
    """Serve ``family`` on a free port of the loopback interface, on the CPU in float32, until the block ends,
    or this process does, however it ends.

    Raises:
        RuntimeError: it ended, or was not ready after ``start_s`` seconds.
    """
    command = [sys.executable, "-c", _CODE, str(family), "--port", "0", "--json", "--device", "cpu"]
    command += ["--dtype", "float32", *options]
    said = log.with_suffix(".json")
    with log.open("w") as errors, said.open("w") as output:
        process = subprocess.Popen(
            bound(command),
            stdout=output,
            stderr=errors,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
    try:
        until = time.monotonic() + start_s
        while not said.read_text().rstrip().endswith("}"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server is not there; see {log}")
            time.sleep(0.05)
        yield ServerUnderTest(json.loads(said.read_text())["url"], process, log)
    finally:
        end(process, patience_s=60)
