"""Memory that is freed goes back to the system, but not at every step."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

from ladle.server.engine.device import allocator


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_it_is_time_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now, trims = [0.0], []
    monkeypatch.setattr(allocator, "trim", lambda: trims.append(now[0]))
    trimmer = allocator.Trimmer(every_s=60.0, clock=lambda: now[0])
    for now[0] in (0.0, 59.9, 60.0, 60.1, 119.0, 500.0, 501.0):
        assert trimmer.tick() == (now[0] in (60.0, 500.0))
    assert trims == [60.0, 500.0]
    now[0] = 530.0
    trimmer.trim()
    now[0] = 570.0
    assert not trimmer.tick() and trims[-1] == 530.0, "the period begins again"


@pytest.mark.skipif(sys.platform != "linux", reason="of the C library there")
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    allocator.prepare()
    blocks = [torch.ones(1 << 18) for _ in range(200)]  # a megabyte each
    kept = blocks[::20]
    full = resident()
    del blocks
    allocator.trim()
    assert resident() < full - (100 << 20)
    assert all(bool((block == 1).all()) for block in kept)


def test_what_has_settled_is_no_longer_looked_through_but_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        def __init__(self) -> None:
            self.itself = self

    monkeypatch.setattr(allocator, "trim", lambda: None)
    gc.unfreeze()  # what the tests' own settings have frozen
    ring = weakref.ref(old := Ring())
    try:
        allocator.settle()
        assert gc.get_freeze_count() > 10_000
        del old
        gc.collect()
        assert ring() is not None
        allocator.give_back()
        assert ring() is None and gc.get_freeze_count() > 10_000
        gc.unfreeze()
        allocator.give_back()
        assert gc.get_freeze_count() == 0, "where nothing has settled nothing does by this"
    finally:
        gc.freeze()
