"""A server that is started for a run does not outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.recipes.sweeps.server import bound

RUN = """
import subprocess, sys, time
from ladle.recipes.sweeps.server import bound
child = subprocess.Popen(bound(["sleep", "300"]))
print(child.pid, flush=True)
time.sleep(300)
"""


def name_of(pid: int) -> str:
    """What the process runs; empty once it is gone or only waits to be collected."""
    try:
        name, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rsplit(")", 1)
    except FileNotFoundError:
        return ""
    return "" if state.split()[0] == "Z" else name


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("ends_by", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_run_has_started_ends_too(ends_by: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        until = time.monotonic() + 60
        while name_of(child) != "sleep":
            assert time.monotonic() < until
            time.sleep(0.01)
        run.send_signal(ends_by)
    while name_of(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_is_bound_is_the_command_itself() -> None:
    """One process, so that its number, its signals and its exit code are the command's."""
    with subprocess.Popen(
        bound([sys.executable, "-c", "import os; print(os.getpid()); os._exit(7)"]), stdout=-1
    ) as run:
        assert run.stdout is not None and int(run.stdout.read()) == run.pid
    assert run.returncode == 7 and os.getpid() != run.pid
