import asyncio
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
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
