"""The clients of the comparison with other servers, against a server of ours: what they count and what they pause."""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from live_server import served
from tiny_engine import family_of

from ladle.benchmarks.peers import load
from ladle.benchmarks.peers.peers import cases
from ladle.benchmarks.peers.sides import PeerServer, free_port, running


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> object:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(load, "_IDS", (3, 60))
    folder = family_of(tmp_path_factory.mktemp("peers")).root
    with served(folder) as (url, _):
        wishes = [{"steering": {"preference": {"positive": share, "simple": 1 - share}}} for share in (0.2, 0.7)]
        yield PeerServer("ladle", url, {"steering": {"method": "base"}}, None, wishes)  # type: ignore[arg-type]
    monkeypatch.undo()


def test_every_burst_gives_figures(side: PeerServer) -> None:
    rng = random.Random(0)
    decode = asyncio.run(load.together(side, 3, 8, 6, rng))
    assert set(decode) == {"step_ms", "prompt_tokens_per_s"} and all(value > 0 for value in decode.values())
    assert set(asyncio.run(load.together(side, 2, 8, 1, rng))) == {"prompt_tokens_per_s"}
    for mixed in (False, True):
        found = asyncio.run(load.clients(side, 3, 2, 4, 5, rng, mixed))
        assert set(found) == {"tokens_per_s", "first_token_ms"} and found["tokens_per_s"] > 0
    with pytest.raises(RuntimeError, match="ladle: 400"):
        asyncio.run(load.together(side, 1, 8, -1, rng))


def test_a_stream_is_timed_by_its_ends() -> None:
    stream = load.TimedStream((1.0, 1.1, 1.4), 5)
    assert stream.step_ms == pytest.approx(100) and list(stream.gaps) == pytest.approx([0.1, 0.3])


def test_a_side_that_ends_says_where_to_look(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(RuntimeError, match="other ended with 3"),
        running("other", [sys.executable, "-c", "raise SystemExit(3)"], free_port(), log, {}),
    ):
        pass


def test_a_side_waits_where_it_is(tmp_path: Path) -> None:
    port = free_port()
    handler = "http.server.SimpleHTTPRequestHandler"
    program = f"import http.server; http.server.HTTPServer(('127.0.0.1', {port}), {handler}).serve_forever()"
    with running("other", [sys.executable, "-c", program], port, tmp_path / "log", {}, health="/") as side:
        side.pause()
        _, status = os.waitpid(side.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        side.resume()
        _, status = os.waitpid(side.process.pid, os.WCONTINUED)
        assert os.WIFCONTINUED(status)


def test_ours_comes_first_in_every_case() -> None:
    assert all(case.sides[0].startswith("ladle") and len(case.sides) > 1 for case in cases())
    assert len({case.name for case in cases()}) == len(cases())
