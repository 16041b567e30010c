import random
from collections.abc import Callable
from typing import Any

import pytest
from mock_server import MockServer

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

    monkeypatch.setattr("ladle.clients.client.time.sleep", recorded.append)
    monkeypatch.setattr("ladle.clients.async_client.asyncio.sleep", asleep)
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
