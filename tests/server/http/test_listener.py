"""At the limit of file descriptors: connections are refused, and taken again once there is room."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from ladle.server.http.listener import BoundedListener
from ladle.server.run import listen

pytestmark = pytest.mark.anyio


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A soft limit of some hundred more than the process uses."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    limit = highest + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1):
            writer.write(b"y")
        writer.close()


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = connection
    try:
        writer.write(b"x")
        return await asyncio.wait_for(reader.read(1), 20)
    except OSError:
        return b""


@pytest.mark.parametrize("taken", [False, True])
async def test_a_flood_of_connections_is_refused_and_forgotten(
    few_descriptors: int, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``taken``: something else uses the last descriptors, so that not even refusals get one."""
    listener = listen("127.0.0.1", 0)
    assert isinstance(listener, BoundedListener)
    server = await asyncio.start_server(answer, sock=listener, backlog=2048)
    address = listener.getsockname()
    with caplog.at_level(logging.ERROR):
        held = []
        # Both ends live in this process: a hundred and some connections are all that fits.
        for _ in range(2 if taken else 95):
            held.append(await asyncio.open_connection(*address))
            await asyncio.sleep(0)
        files: list[int] = []
        clients = [socket.socket() for _ in range(5)]
        if taken:
            with contextlib.suppress(OSError):
                while True:
                    files.append(os.open(os.devnull, os.O_RDONLY))
        said = []
        for client in clients:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, address)
        for client in clients:
            try:
                said.append(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1000), 20))
            except OSError:
                said.append(b"")
            client.close()
        for file in files:
            os.close(file)
        answers = [await ask(connection) for connection in held]
        assert answers[0] == b"y", "who was there before goes on"
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        again = await asyncio.open_connection(*address)
        assert await ask(again) == b"y"
        again[1].close()
    if taken:
        assert said == [b""] * 5
    else:
        assert all(text.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in text for text in said)
        assert json.loads(said[0].partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    refusals = [record for record in caplog.records if "connections are refused" in record.message]
    assert len(refusals) == 1 and str(few_descriptors) in refusals[0].message and len(caplog.records) == 1
    server.close()
    await server.wait_closed()
