"""Loops that are compiled in another process: what is awaited, and what is done when it fails."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ladle.kernels import ahead
from ladle.kernels.cpu import first_code


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_code, "is_done", lambda form, part: False)
    yield
    for part in first_code.PARTS:
        ahead.await_code(part)


def begins(monkeypatch: pytest.MonkeyPatch, program: str) -> dict[str, Any]:
    """Have ``program`` run in the place of what compiles; returns the processes by their part."""
    begun: dict[str, Any] = {}
    started = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        assert command[1:4] == ["-P", "-m", "ladle.kernels.cpu.first_code"]
        begun[command[5]] = started([sys.executable, "-c", program, *command[4:]], **options)
        return begun[command[5]]

    monkeypatch.setattr(ahead.subprocess, "Popen", start)
    return begun


def test_each_part_is_awaited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = begins(monkeypatch, "import sys; sys.argv[2] == 'layers' and sys.stdin.read(1)")
    assert ahead.compile_ahead(False)
    assert not ahead.compile_ahead(False)  # it runs
    ahead.await_code("products")
    assert begun["products"].returncode == 0 and begun["layers"].poll() is None
    begun["layers"].stdin.write(b"x")
    begun["layers"].stdin.flush()
    ahead.await_code("layers")
    assert begun["layers"].returncode == 0 and len(begun) == 2 and not caplog.records
    ahead.await_code("layers")  # nothing is left to wait for


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; os.abort()"])
def test_a_process_that_fails_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str
) -> None:
    begins(monkeypatch, program)
    assert ahead.compile_ahead(False)
    ahead.await_code("layers")
    assert "compiled in this process" in caplog.text


def test_all_are_awaited_and_work_gently(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = begins(monkeypatch, "import sys; sys.stdin.read(1)")
    assert not ahead.compiling() and ahead.compile_ahead(False, gently=True) and ahead.compiling()
    for process in begun.values():
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0) or os.nice(0) == 19
        process.stdin.write(b"x")
        process.stdin.flush()
    ahead.await_all()
    assert not ahead.compiling() and len(begun) == 2 and {each.returncode for each in begun.values()} == {0}


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = begins(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(ahead, "_PATIENCE_S", 0.05)
    assert ahead.compile_ahead(False)
    ahead.await_code("products")
    assert begun["products"].returncode < 0 and "compiled in this process" in caplog.text


def test_only_what_is_not_there_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = begins(monkeypatch, "")
    monkeypatch.setattr(first_code, "is_done", lambda form, part: form == "int8")
    assert not ahead.compile_ahead(True) and not begun
    monkeypatch.setattr(first_code, "is_done", lambda form, part: part == "products")
    assert ahead.compile_ahead(True) and list(begun) == ["layers"]
