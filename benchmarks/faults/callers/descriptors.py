"""More connections than a server has file descriptors for: it refuses, says so once, and takes others afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections import Counter
from pathlib import Path

from ladle.benchmarks.faults.request_storm import session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

LIMIT = 256
"""Descriptors of the server's process."""


async def run(server: ServerUnderTest, connections: int) -> dict[str, object]:
    """One row: ``connections`` are opened and kept, then closed; ``LIMIT`` is set for the process that serves, and
    taken back."""
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (LIMIT, hard))
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    outcomes: Counter[str] = Counter()
    wrong = []
    before = server.samples()["ladle_process_cpu_seconds_total", ""]
    held = []
    for _ in range(connections):
        with contextlib.suppress(OSError):
            held.append(await asyncio.open_connection(host, int(port)))
    await asyncio.sleep(0.2)
    idle = _processor_s(server)
    await asyncio.sleep(2)
    spun = _processor_s(server) - idle
    for reader, writer in held:
        outcomes[await _outcome(reader, writer)] += 1
    for _, writer in held:
        writer.close()
    start = time.monotonic()
    status = 0
    async with session_of(server) as session:
        while status != 200 and time.monotonic() - start < 20:
            with contextlib.suppress(OSError):
                async with session.post("/v1/generate", json={"prompt": "rain", "max_tokens": 1}) as reply:
                    status = reply.status
            await asyncio.sleep(0.05)
    recovered = time.monotonic() - start
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    said = server.log.read_text(errors="replace").count("connections are refused")
    if status != 200:
        wrong.append(f"no answer {recovered:.0f} s after all connections were closed: {status}")
    if said != 1 or "out of system resource" in server.log.read_text(errors="replace"):
        wrong.append(f"the log says it {said} times")
    if spun > 1:
        wrong.append(f"{spun:.1f} s of processor time in 2 s without anything to do")
    if not outcomes["refused"] or not outcomes["kept"]:
        wrong.append(f"not some kept and some refused: {dict(outcomes)}")
    return {
        "run": "descriptors",
        "count": connections,
        "outcomes": dict(outcomes),
        "processor_s_in_2_s": round(spun, 2),
        "recovered_s": round(recovered, 2),
        "processor_s": round(server.samples()["ladle_process_cpu_seconds_total", ""] - before, 2),
        "wrong": len(wrong),
        "first_wrong": wrong,
        "tracebacks": len(server.failures()),
    }


async def _outcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Whether a connection is answered, or was refused."""
    try:
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            line = await reader.readline()
    except (OSError, TimeoutError) as error:
        return "refused" if isinstance(error, ConnectionError) else type(error).__name__
    return "kept" if b" 200 " in line else "refused"


def _processor_s(server: ServerUnderTest) -> float:
    """Processor time of the server's process so far, asked of the system: no connection is left for asking it."""

    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
