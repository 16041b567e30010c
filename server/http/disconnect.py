"""Noticing that a client is gone while its answer is being made. Starlette cancels no handler for that."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client left before its answer was ready."""


async def gone(receive: Receive) -> None:
    """Return once the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_of(work: asyncio.Task[T], watcher: asyncio.Task[None]) -> T | None:
    """The result of ``work``, or None when ``watcher`` ended first; both are over when this returns."""
    try:
        await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for task in (work, watcher):
            task.cancel()
        # Cancelled work still has to give back what it holds.
        await asyncio.gather(work, watcher, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, cancelled when the client leaves.

    Raises:
        ClientGone: it left.
    """
    result = await first_of(asyncio.create_task(work), asyncio.create_task(gone(request.receive)))
    if result is None:
        raise ClientGone
    return result
