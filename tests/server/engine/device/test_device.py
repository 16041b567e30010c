"""Every thread that launches kernels says where they go."""

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import Collector, build, family_of, make_request, wait_for

from ladle.server.engine import engine as engine_module
from ladle.server.engine import served_models
from ladle.server.engine.device.device import beside_steps, make_current


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a thread asked of torch.cuda, in order."""
    calls: list[tuple[str, Any]] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            calls.append(("new stream", device))

        def synchronize(self) -> None:
            calls.append(("wait", self))

    @contextmanager
    def stream(one: Stream) -> Any:
        calls.append(("on", one))
        yield
        calls.append(("off", one))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    return calls


def test_which_gpu(made: list[tuple[str, Any]]) -> None:
    for name in ("cpu", "cuda"):  # without a number it is the thread's own already
        make_current(torch.device(name))
    assert not made
    make_current(torch.device("cuda:1"))
    assert made == [("device", torch.device("cuda:1"))]


def test_work_beside_steps_is_done_when_it_ends(made: list[tuple[str, Any]]) -> None:
    with beside_steps(torch.device("cpu")):
        pass
    assert not made
    with beside_steps(torch.device("cuda:1")):
        made.append(("work", None))
    assert [what for what, _ in made] == ["device", "new stream", "on", "work", "off", "wait"]
    with pytest.raises(ValueError, match="broken"), beside_steps(torch.device("cuda")):
        raise ValueError("broken")


def test_the_threads_that_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current: set[str] = set()
    beside: set[str] = set()

    @contextmanager
    def noted(device: torch.device) -> Any:
        beside.add(threading.current_thread().name)
        yield

    monkeypatch.setattr(engine_module, "make_current", lambda device: current.add(threading.current_thread().name))
    monkeypatch.setattr(served_models, "beside_steps", noted)
    engine = build(family_of(tmp_path, full=("bone-simple",)))
    engine.start()
    collector = Collector()
    engine.submit(make_request("a", (5, 6, 7), {"bone-simple": 0.5}, max_tokens=2, ignore_eos=True), collector)
    wait_for(lambda: collector.finished("a"))
    engine.shutdown()
    here = threading.current_thread().name
    assert current == {here, "ladle-engine"}
    assert {here, "ladle-merge_0"} == beside
