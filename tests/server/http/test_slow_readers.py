"""Clients that stop reading over a real connection: their lanes come back, and those who read are not disturbed."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace

import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family
from ladle.server.app import build_app
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.http.slow_readers import bound_buffers
from ladle.server.run import listen

PATIENCE = 1.0  # seconds


class Talkative(FakeEngine):
    """Says the same token without end; to the prompt "much" with 4 KiB of text each time, so that a connection's
    buffers are full in no time."""

    async def stream(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        request = replace(request, sampling=replace(request.sampling, max_tokens=10))
        async with aclosing(super().stream(request)) as outputs:  # type: ignore[type-var]
            first = await anext(outputs)
            much = len(request.prompt) > 1
            while True:
                yield replace(first, text="x" * 4096 if much else "x")
                await asyncio.sleep(0.0005 if much else 0.02)


@pytest.fixture
def served(family: Family) -> Iterator[tuple[Talkative, int]]:
    engine = Talkative()
    engine.max_context = 1 << 20
    listener = listen("127.0.0.1", 0)
    bound_buffers(listener, PATIENCE)
    app = build_app(fake_state(family, engine, send_seconds=PATIENCE))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield engine, listener.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(20)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ask(port: int, path: str, body: dict) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    data = json.dumps({**body, "stream": True, "max_tokens": 100_000}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_who_stops_reading_is_given_up_and_who_reads_is_not(served: tuple[Talkative, int]) -> None:
    engine, port = served
    body = {"prompt": "a", "stream": True}
    with (
        ExitStack() as stack,
        httpx.stream("POST", f"http://127.0.0.1:{port}/v1/generate", json=body, timeout=60) as reading,
    ):
        lines = reading.iter_lines()
        next(lines)
        for path, choices in (("/v1/generate", 2), ("/v1/completions", 1)):
            stack.enter_context(ask(port, path, {"prompt": "much", "n": choices}))
        until(lambda: len(engine.running) == 4 or next(lines) is None)
        deadline = time.monotonic() + 60
        while len(engine.running) > 1:
            assert next(lines) is not None, "the one who reads goes on"
            assert time.monotonic() < deadline, "lanes are held by clients that do not read"
        assert next(lines) is not None
    until(lambda: not engine.running)
    assert len(engine.cancelled) == 4
