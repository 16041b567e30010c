import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from mock_server import FAMILY, MockServer

from ladle.clients import AsyncClient, Client


@pytest.fixture
def rng(seed: int) -> random.Random:
    """Fresh randomness each run; the seed is shown when a test fails."""
    return random.Random(seed)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, recorded instead of waited for."""
    recorded: list[float] = []

    async def asleep(seconds: float) -> None:
        recorded.append(seconds)

    # In place of the modules as the clients see them: what other tests have left running sleeps as it did.
    monkeypatch.setattr("ladle.clients.client.time", SimpleNamespace(**{**vars(time), "sleep": recorded.append}))
    monkeypatch.setattr("ladle.clients.async_client.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": asleep}))
    return recorded


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LADLE_URL", raising=False)
    monkeypatch.delenv("LADLE_API_KEY", raising=False)


@pytest.fixture
def connect() -> Callable[..., Client]:
    def make(server: MockServer, **options: Any) -> Client:
        return Client("http://ladle.test", transport=server.transport, **options)

    return make


@pytest.fixture
def aconnect() -> Callable[..., AsyncClient]:
    def make(server: MockServer, **options: Any) -> AsyncClient:
        return AsyncClient("http://ladle.test", transport=server.transport, **options)

    return make


@pytest.fixture
def live_mock() -> Iterator[str]:
    """The address of a server on the loopback interface that lists one family, for processes of their own."""

    class Families(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"object": "list", "data": [FAMILY]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: whoever calls prints what matters."""

    server = HTTPServer(("127.0.0.1", 0), Families)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)
