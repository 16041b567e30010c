"""Grammars of clients live in processes of their own: what ends one of those costs the request that did it."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from grammar_walks import EOS, Walk, children_of
from seeds import fresh_seed
from tiny_engine import build, family_of, make_request, serve
from tiny_models import tiny_tokenizer

from ladle.server.engine.grammars import grammar, wire
from ladle.server.engine.grammars import nursery as grammar_nursery
from ladle.server.engine.grammars.grammar import (
    Grammar,
    GrammarCompiler,
    GrammarError,
    GrammarSpec,
    GrammarsUnavailable,
)

CRASHES = GrammarSpec("json_schema", '{"enum":[-9223372036854775807]}')
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    found = GrammarCompiler(tiny_tokenizer(), EOS)
    yield found
    found.close()


def nursery_of(compiler: GrammarCompiler) -> int:
    compiler.warm()
    assert compiler._nursery is not None and compiler._nursery.pid is not None
    return compiler._nursery.pid


def letters(text: str) -> list[int]:
    return list(tiny_tokenizer().convert_tokens_to_ids(list(text)))


def test_a_schema_that_ends_its_process_is_refused_and_remembered(compiler: GrammarCompiler) -> None:
    good = compiler.compile(GrammarSpec("regex", "[ab]{3}"))
    with Walk(good) as walk:
        assert len(walk.allowed()) == 2
        for _ in range(3):
            with pytest.raises(GrammarError, match="too complex: it ended its process") as refused:
                compiler.compile(CRASHES)
            assert refused.value.complex
        assert compiler._nursery is not None and compiler._nursery._last == 2, "one process for each, and no more"
        assert walk.take(letters("a")[0]) and len(walk.allowed()) == 2
    assert compiler.forget() == 1
    with pytest.raises(GrammarError, match="ended its process"):
        compiler.compile(CRASHES)


def test_workers_are_bounded_in_number_and_their_ends_are_heard(compiler: GrammarCompiler) -> None:
    parent = nursery_of(compiler)
    for index in range(400):  # more than a channel holds unread words of ended workers
        compiler.compile(GrammarSpec("regex", f"a{{{index}}}b"))
    until = time.monotonic() + 10
    while len(children_of(parent)) > 9 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(children_of(parent)) <= 9


def test_many_grammars_at_once_share_a_few_workers(compiler: GrammarCompiler) -> None:
    parent = nursery_of(compiler)
    walks = []
    for index in range(30):
        walks.append(Walk(compiler.compile(GrammarSpec("regex", f"[ab]{{5}}{index}"))))
        assert walks[-1].allowed()
    until = time.monotonic() + 10
    while len(children_of(parent)) > 8 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(children_of(parent)) == 8
    assert all(walk.take(letters("a")[0]) and len(walk.allowed()) == 2 for walk in walks)
    os.kill(children_of(parent)[0], signal.SIGKILL)
    assert all(walk.take(letters("b")[0]) and len(walk.allowed()) == 2 for walk in walks)
    for walk in walks:
        walk.__exit__()


def test_positions_move_when_their_worker_is_killed(compiler: GrammarCompiler) -> None:
    rng = random.Random(fresh_seed())
    grammars = [compiler.compile(GrammarSpec("regex", f"[ab]{{40}}{index}")) for index in range(3)]
    walks = [Walk(found) for found in grammars]
    for turn in range(12):
        if turn in (4, 8):
            pid = nursery_of(compiler)
            for process in [*children_of(pid), *([pid] if turn == 8 else [])]:
                os.kill(process, signal.SIGKILL)
        for walk in walks:
            assert sorted(walk.allowed()) == sorted(letters("ab")) and walk.take(rng.choice(letters("ab")))
    assert all(len(walk.position.tokens) == 12 and walk.position.error is None for walk in walks)
    for walk in walks:
        walk.__exit__()


def test_workers_are_forked_though_their_process_is_about_to_end(compiler: GrammarCompiler) -> None:
    """It has been killed, and the system has not said so yet: it answered 503 until it did."""
    pid = nursery_of(compiler)
    assert compiler._nursery is not None and compiler._nursery._handles.control is not None
    os.kill(pid, signal.SIGSTOP)
    compiler._nursery._handles.control.socket.shutdown(socket.SHUT_WR)
    with Walk(compiler.compile(GrammarSpec("regex", "[ab]{3}"))) as walk:
        assert len(walk.allowed()) == 2
    assert nursery_of(compiler) != pid and not Path(f"/proc/{pid}").exists()


def test_what_a_worker_was_at_fails_and_its_neighbours_move(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault while an answer is written, in a process that others share."""
    shared = compiler.compile(GrammarSpec("regex", "[ab]{40}"))
    victim, neighbour = Walk(shared), Walk(shared)
    victim.allowed(), neighbour.allowed()
    home = victim.position.home
    assert home is not None and home is neighbour.position.home
    process = children_of(nursery_of(compiler))[-1]
    os.kill(process, signal.SIGSTOP)
    wire.PLACE.pack_into(home.worker.memory, 0, wire.MASK, victim.position.name)
    os.kill(process, signal.SIGSEGV)
    os.kill(process, signal.SIGCONT)
    assert neighbour.take(letters("a")[0]) and len(neighbour.allowed()) == 2
    shared.pool.masks([victim.position])
    assert "too complex: it ended its process (SIGSEGV" in str(victim.position.error)
    neighbour.__exit__()


def test_a_worker_that_stands_still_holds_nobody_else_up(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ladle.server.engine.grammars.pool.PATIENCE_S", 0.3)
    walks = [Walk(compiler.compile(GrammarSpec("regex", f"[ab]{{9}}{index}"))) for index in range(4)]
    for walk in walks:
        walk.allowed()
    pool, parent = walks[0]._pool, nursery_of(compiler)
    homes = [walk.position.home for walk in walks]
    stuck = children_of(parent)[0]  # the first one that was asked for
    os.kill(stuck, signal.SIGSTOP)
    started = time.monotonic()
    pool.advance([(walk.position, letters("a")[0]) for walk in walks])
    assert time.monotonic() - started < 5
    assert [walk.position.home for walk in walks[1:]] == homes[1:], "theirs were not at fault"
    pool.masks([walk.position for walk in walks])
    assert [walk.position.error for walk in walks[1:]] == [None] * 3
    for walk in walks:
        walk.__exit__()


def test_an_engine_goes_on_through_killed_workers(compiler: GrammarCompiler, tmp_path: Path) -> None:
    engine = build(family_of(tmp_path, seed=fresh_seed() % 1000))
    requests = [
        replace(make_request(str(index), [5, 6], max_tokens=60, temperature=1.5, seed=index), grammar=grammar)
        for index, grammar in enumerate(compiler.compile(GrammarSpec("regex", f"[a-z]{{30}}{n}")) for n in range(4))
    ]
    expected = serve(build(family_of(tmp_path / "other", seed=fresh_seed() % 1000)), requests)
    steps = 0

    class Killing(type(engine)):  # type: ignore[misc]
        def step(self) -> object:
            nonlocal steps
            steps += 1
            if steps % 7 == 0:
                for process in children_of(nursery_of(compiler)):
                    os.kill(process, signal.SIGKILL)
            return super().step()

    engine.__class__ = Killing
    outputs = serve(engine, requests)
    for request in requests:
        for found in (outputs, expected):
            text = "".join(output.text for output in found[request.request_id])
            assert request.grammar is not None and re.fullmatch(request.grammar.spec.text, text)
    assert steps > 14


def test_memory_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grammar.LIMITS, "memory", 40 << 20)
    small = GrammarCompiler(tiny_tokenizer(), EOS)
    with pytest.raises(GrammarError, match="too complex"):
        small.compile(GrammarSpec("regex", "(a{1000}){1000}"))
    assert small.compile(GrammarSpec("regex", "a+"))
    small.close()


def test_no_worker_outlives_its_server(tmp_path: Path) -> None:
    """Not even where the server is killed while one is busy in native code."""
    code = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import socket
        listener = socket.create_server(("127.0.0.1", 0))
        from tiny_models import tiny_tokenizer
        from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec
        compiler = GrammarCompiler(tiny_tokenizer(), (2, 0))
        grammar = compiler.compile(GrammarSpec("regex", "a+"))
        grammar.start()
        print(compiler._nursery.pid, flush=True)
        time.sleep(600)
    """
    fixtures = str(Path(__file__).parents[3] / "fixtures")
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), fixtures], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    parent = int(server.stdout.readline())
    workers = children_of(parent)
    assert workers
    # It holds its channel, a pipe to hear of workers by, and what every process has: no socket of the server's.
    held = [os.readlink(f"/proc/{parent}/fd/{name}") for name in os.listdir(f"/proc/{parent}/fd")]
    assert len([name for name in held if name.startswith("socket:")]) == 1, held
    assert "torch" not in Path(f"/proc/{parent}/maps").read_text()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    server.kill()
    server.wait()
    server.stdout.close()
    until = time.monotonic() + 20
    while any(_runs(process) for process in [parent, *workers]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_runs(process) for process in [parent, *workers])


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_cannot_be_started_is_not_started_without_end(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        pid = nursery_of(compiler)
        os.kill(pid, signal.SIGKILL)
        assert compiler._nursery is not None and compiler._nursery._handles.process is not None
        compiler._nursery._handles.process.wait()
    with pytest.raises(GrammarsUnavailable, match="5 times"):
        compiler.compile(GrammarSpec("regex", "a"))
    monkeypatch.setattr(grammar_nursery, "_WITHIN_S", 0.0)
    assert compiler.compile(GrammarSpec("regex", "a"))


def test_a_tokenizer_that_the_library_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.server.engine.grammars.grammar._json_of", lambda tokenizer: json.dumps({"model": None}))
    compiler = GrammarCompiler(tiny_tokenizer(), EOS)
    with pytest.raises(GrammarError, match="not supported"):
        compiler.compile(GrammarSpec("regex", "a"))
    compiler.close()


def test_many_positions_of_one_grammar(compiler: GrammarCompiler) -> None:
    """More than one worker follows."""
    found: Grammar = compiler.compile(GrammarSpec("regex", "[ab]{4}"))
    walks = [Walk(found) for _ in range(grammar_nursery.SLOTS + 9)]
    token = letters("a")[0]
    for _ in range(4):
        found.pool.masks([walk.position for walk in walks])
        found.pool.advance([(walk.position, token) for walk in walks])
    assert all(walk.stopped for walk in walks)
    for walk in walks:
        walk.__exit__()
