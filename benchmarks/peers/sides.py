"""One server of a comparison: started, stopped in its tracks while another one is measured, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ladle.recipes.sweeps.server import bound

_START_S = 300.0


@dataclass
class PeerServer:
    """A running server.

    Attributes:
        url: without a path.
        body: what every request of this side adds, such as the model's name.
        preference: what a client adds that wants its own mixture of members, by its number; None where the server has
            no such thing.
    """

    name: str
    url: str
    body: Mapping[str, Any]
    process: subprocess.Popen[bytes]
    preference: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def pause(self) -> None:
        """Stop all of its processes where they are: idle servers still spin, look around and write logs."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    port: int,
    log: Path,
    body: Mapping[str, Any],
    preference: Sequence[Mapping[str, Any]] = (),
    health: str = "/health",
    environment: Mapping[str, str] | None = None,
) -> Iterator[PeerServer]:
    """Run ``command``, a server on ``port``, until the block ends; enter when ``health`` says 200.

    Raises:
        RuntimeError: it ended, or did not answer in time; the log has the reason.
    """
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            bound([str(part) for part in command]),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    side = PeerServer(name, url, body, process, preference)
    try:
        _wait(side, health, log)
        yield side
    finally:
        with contextlib.suppress(ProcessLookupError):
            side.resume()
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(side: PeerServer, health: str, log: Path) -> None:
    until = time.monotonic() + _START_S
    while True:
        if side.process.poll() is not None:
            raise RuntimeError(f"{side.name} ended with {side.process.returncode}; see {log}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(side.url + health, timeout=2).status_code == 200:
                return
        if time.monotonic() > until:
            raise RuntimeError(f"{side.name} did not answer at {side.url}{health} in {_START_S:.0f} s; see {log}")
        time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
