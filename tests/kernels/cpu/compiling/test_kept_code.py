"""Compiled code that is kept: each signature finds its own, whoever wrote beside it, and nothing else."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from filelock import FileLock

from ladle.kernels.cpu.compiling import kept_code
from ladle.kernels.cpu.compiling.kept_code import KeptFiles, keep

SCRIPT = """
import os, sys, time
import numba, numpy as np
from ladle.kernels.cpu.compiling import kept_code

def twice(x):
    y = np.empty_like(x)
    for i in range(x.size):
        y[i] = x[i] + x[i]
    return y

kind, meeting = sys.argv[1:]
saved = kept_code.KeptFiles._save_data

def save_together(self, name, data):
    # The other process has compiled too, and neither has written.
    open(os.path.join(meeting, kind), "w").close()
    until = time.monotonic() + 60
    while len(os.listdir(meeting)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    saved(self, name, data)

kept_code.KeptFiles._save_data = save_together
function = numba.njit(twice)
kept_code.keep(function, "source")
print(function(np.arange(1, 4).astype(kind)).tolist(), sum(function.stats.cache_hits.values()))
"""

IN_TURNS = """
import sys
import numba
from ladle.kernels.cpu.compiling import kept_code

def triple(x):
    return x * 3

loaded = kept_code.KeptFiles.load

def told(self, key):
    found = loaded(self, key)
    print("missed" if found is None else "found", flush=True)
    return found

class Slow(kept_code.KeptCache):
    def save_overload(self, sig, data):
        sys.stdin.read()
        super().save_overload(sig, data)

kept_code.KeptFiles.load = told
kept_code.KeptCache = Slow
function = numba.njit(triple)
kept_code.keep(function, "source")
print(function(2))
"""


def triple(x: Any) -> Any:
    return x * 3


def compiled(folder: Path, source: str = "source") -> Any:
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        function = numba.njit(triple)
        keep(function, source)
        return function
    finally:
        numba.config.CACHE_DIR = before


def codegen_of(function: Any) -> Any:
    return function.targetctx.codegen()


def hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_processes_that_compile_for_different_types_at_once_keep_each_its_own(tmp_path: Path) -> None:
    script, meeting = tmp_path / "script.py", tmp_path / "meeting"
    script.write_text(SCRIPT)
    meeting.mkdir()
    kinds = ("float32", "int16")

    def run() -> list[str]:
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PATH": "/usr/bin"}
        started = [
            subprocess.Popen(
                [sys.executable, str(script), kind, str(meeting)], env=environment, stdout=subprocess.PIPE, text=True
            )
            for kind in kinds
        ]
        return [process.communicate(timeout=240)[0].strip() for process in started]

    assert run() == ["[2.0, 4.0, 6.0] 0", "[2, 4, 6] 0"]
    # Now each finds its own, and neither the other's.
    assert run() == ["[2.0, 4.0, 6.0] 1", "[2, 4, 6] 1"]


def test_what_was_kept_is_loaded_for_the_same_source_alone(tmp_path: Path) -> None:
    assert compiled(tmp_path)(2) == 6 and len(files(tmp_path)) == 1
    again = compiled(tmp_path)
    assert again(2) == 6 and hits(again) == 1
    other = compiled(tmp_path, "what is compiled into it has changed")
    assert other(2) == 6 and hits(other) == 0 and len(files(tmp_path)) == 2


def test_a_file_of_another_signature_is_passed_over(tmp_path: Path) -> None:
    function = compiled(tmp_path)
    function(2)
    (whole,) = files(tmp_path)
    held = whole.read_bytes()
    function(2.5)
    (other,) = set(files(tmp_path)) - {whole}
    other.write_bytes(held)  # code for whole numbers in the place of the code for fractions
    again = compiled(tmp_path)
    assert again(2.5) == 7.5 and hits(again) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "rubbish"])
def test_a_damaged_file_is_written_again(tmp_path: Path, damage: str) -> None:
    assert compiled(tmp_path)(2) == 6
    (file,) = files(tmp_path)
    held = file.read_bytes()
    file.write_bytes({"cut": held[: len(held) // 2], "empty": b"", "rubbish": bytes(range(256))}[damage])
    again = compiled(tmp_path)
    assert again(2) == 6 and hits(again) == 0
    once_more = compiled(tmp_path)
    assert once_more(2) == 6 and hits(once_more) == 1


def test_a_disk_that_is_full_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KeptFiles, "_save_data", full)
    monkeypatch.setattr(KeptFiles, "_told", False)
    with caplog.at_level(logging.WARNING):
        function = compiled(tmp_path)
        assert function(2) == 6 and function(2.5) == 7.5
        assert np.array_equal(function(np.arange(3)), [0, 3, 6])
    told = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert len(told) == 1 and "No space left" in told[0]


def test_what_another_process_compiles_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IN_TURNS)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "script.py"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=pipe, stdout=pipe, text=True)

    with start() as first:
        assert first.stdout is not None
        # It compiles, for when it looked again nothing was there either.
        assert [first.stdout.readline() for _ in range(2)] == ["missed\n"] * 2
        with start() as second:
            assert second.stdout is not None and second.stdout.readline() == "missed\n"
            first.communicate()
            assert second.communicate()[0].split() == ["found", "6"]
    assert len(files(tmp_path)) == 1


def test_what_cannot_be_compiled_is_not_waited_for(tmp_path: Path) -> None:
    function = compiled(tmp_path)
    place = function._cache._cache_file.place(function._cache._index_key((numba.types.none,), codegen_of(function)))
    for _ in range(2):
        with pytest.raises(numba.TypingError):
            function(None)
        assert place.with_suffix(".lock").exists(), "it was taken"
        with FileLock(place.with_suffix(".lock"), timeout=0):
            pass
    assert function(2) == 6 and len(files(tmp_path)) == 1


def test_one_that_never_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = compiled(tmp_path)
    place = held._cache._cache_file.place(held._cache._index_key((numba.int64,), codegen_of(held)))
    monkeypatch.setattr(kept_code, "_PATIENCE_S", 0.01)
    with FileLock(place.with_suffix(".lock")):
        assert held(2) == 6 and hits(held) == 0
    assert hits(compiled(tmp_path)) == 0 and files(tmp_path) == [place]
