"""Loops that are compiled in another process: what is awaited, and what is done when it fails."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ladle.kernels import ahead
from ladle.kernels.cpu import first_code


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_code, "is_done", lambda form: False)
    yield
    ahead.await_code("layers")


def begins(monkeypatch: pytest.MonkeyPatch, program: str) -> list[Any]:
    """Have ``program`` run in the place of the one that compiles; returns the processes."""
    begun: list[Any] = []
    started = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        assert command[1:4] == ["-P", "-m", "ladle.kernels.cpu.first_code"]
        begun.append(started([sys.executable, "-c", program], **options))
        return begun[-1]

    monkeypatch.setattr(ahead.subprocess, "Popen", start)
    return begun


def test_each_stage_is_awaited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = begins(monkeypatch, "import sys; print('products', flush=True); sys.stdin.read(1); print('layers')")
    assert ahead.compile_ahead(False)
    assert not ahead.compile_ahead(False)  # it runs
    ahead.await_code("products")
    assert begun[0].poll() is None
    begun[0].stdin.write(b"x")
    ahead.await_code("layers")
    assert begun[0].returncode == 0 and len(begun) == 1 and not caplog.records
    ahead.await_code("layers")  # nothing is left to wait for


def test_layers_are_awaited_by_whoever_did_not_wait_for_products(monkeypatch: pytest.MonkeyPatch) -> None:
    (begun := begins(monkeypatch, "print('products'); print('layers')"))
    assert ahead.compile_ahead(True)
    ahead.await_code("layers")
    assert begun[0].returncode == 0


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; print('products', flush=True); os.abort()"])
def test_a_process_that_fails_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str
) -> None:
    begins(monkeypatch, program)
    assert ahead.compile_ahead(False)
    ahead.await_code("layers")
    assert "compiled in this process" in caplog.text
    ahead.await_code("products")


def test_a_process_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = begins(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(ahead, "_PATIENCE_S", 0.05)
    assert ahead.compile_ahead(False)
    ahead.await_code("products")
    assert begun[0].returncode is not None and "compiled in this process" in caplog.text


def test_nothing_is_begun_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_code, "is_done", lambda form: form == "int8")
    begins(monkeypatch, "")
    assert not ahead.compile_ahead(True)
