"""Work on threads, taken in turns: whoever asks for much waits behind whoever asks for little."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from ladle.server.api_errors import ApiError

T = TypeVar("T")

MOST_WAITING = 256
"""Pieces of work of one caller that may wait. A request has one of them at a time."""


@dataclass(eq=False)
class _Piece:
    work: Callable[[], Any]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class FairPool:
    """A few threads that take one piece of work from each caller in turn. For the event loop's thread.

    A caller that has many pieces waiting so delays others by one piece per thread at most. A piece whose request is
    given up before its turn comes is never begun.

    Args:
        threads: default: half of the machine's cores, 4 at most, so that the engine keeps the others.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._free = threads or max(1, min(4, (os.cpu_count() or 2) // 2))
        self._threads = ThreadPoolExecutor(self._free, "ladle-read")
        self._waiting: OrderedDict[Hashable, deque[_Piece]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Pieces that no thread has begun."""
        return sum(map(len, self._waiting.values()))

    async def run(self, caller: Hashable, function: Callable[..., T], *arguments: Any) -> T:
        """``function(*arguments)``, on a thread, when the turn of ``caller`` comes.

        Raises:
            ApiError: 429; the caller has ``MOST_WAITING`` pieces waiting already.
        """
        mine = self._waiting.setdefault(caller, deque())
        if len(mine) >= MOST_WAITING:
            raise ApiError(
                429,
                f"{MOST_WAITING} requests of this caller wait to be read; try again in 1 s",
                code="too_many_at_once",
                headers={"Retry-After": "1"},
            )
        piece = _Piece(partial(function, *arguments))
        mine.append(piece)
        self._begin()
        try:
            result: T = await piece.done
            return result
        finally:
            # Given up before its turn: a piece that a thread has begun is in no queue any more.
            if piece in mine:
                mine.remove(piece)
                if not mine and self._waiting.get(caller) is mine:
                    del self._waiting[caller]

    def _begin(self) -> None:
        while self._free and self._waiting:
            caller, pieces = self._waiting.popitem(last=False)
            piece = pieces.popleft()
            if pieces:
                self._waiting[caller] = pieces  # at the end: everybody else comes first
            self._free -= 1
            running = asyncio.get_running_loop().run_in_executor(self._threads, piece.work)
            running.add_done_callback(partial(self._end, piece))

    def _end(self, piece: _Piece, running: asyncio.Future[Any]) -> None:
        self._free += 1
        if not piece.done.done():
            error = running.exception()
            if error is not None:
                piece.done.set_exception(error)
            else:
                piece.done.set_result(running.result())
        elif not running.cancelled():
            running.exception()  # nobody is left who would hear of it
        self._begin()
