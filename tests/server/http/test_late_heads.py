"""Connections on which no request comes end, and those on which one is read or answered do not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from ladle.server.http.late_heads import PromptHeads
from ladle.server.run import listen

pytestmark = pytest.mark.anyio
WAITS_S = 0.3
HEAD = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


async def _app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Reads the body, and answers: at once, or after three times as long as a head may take."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await asyncio.sleep(3 * WAITS_S if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(
        _app,  # type: ignore[arg-type]
        http=PromptHeads,
        timeout_keep_alive=WAITS_S,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    with listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def _talk(port: int, *parts: bytes) -> bytes:
    """All that comes until the server ends the connection; ``parts`` are sent a third of the time of a head apart."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(WAITS_S / 3)
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("parts", "answers"),
    [
        ((), 0),
        ((b"POST / HT",), 0),
        ((HEAD[:-2] % b"",), 0),
        ((HEAD % b"" + b"ok", HEAD[:-2] % b""), 1),
        ((HEAD % b"slow" + b"ok",), 1),
        ((HEAD % b"" + b"o", b"k" + HEAD % b"slow" + b"ok"), 2),
    ],
)
async def test_connections_end(port: int, parts: tuple[bytes, ...], answers: int) -> None:
    assert (await _talk(port, *parts)).count(b"200 OK") == answers


async def test_a_head_in_drops_does_not_keep_a_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.create_task(reader.read())
    writer.write(b"POST / HTTP/1.1\r\n")
    async with asyncio.timeout(30):
        while not ended.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(WAITS_S / 10)
    assert await ended == b""
    writer.close()


async def test_a_body_has_its_own_time(port: int) -> None:
    reply = await _talk(port, HEAD % b"", b"", b"", b"", b"", b"", b"ok")
    assert reply.count(b"200 OK") == 1
