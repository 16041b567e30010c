"""What turns the texts of one request into tokens: in turns with other callers, and no longer than its client stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from ladle.server.access.callers import Meter
from ladle.server.access.security import caller_of, who_asks
from ladle.server.access.turns import FairPool
from ladle.server.fields.token_ids import TokenIds
from ladle.server.http.disconnect import unless_gone

T = TypeVar("T")

_SHORT = 2000  # characters of a request that are read on the event loop: the hand-over would cost more than the work
_FEW_PARTS = 500  # messages and their like, of which one takes some microseconds


class Reader:
    """Reads one request.

    Args:
        request: whose client may leave; its body must have been read.
        pool: where longer texts are read.
        compiling: where grammars are compiled; they wait for processes, which is to hold no texts up.
        meter: pays for tokens; None for who pays nothing.
    """

    def __init__(
        self, request: Request, pool: FairPool, compiling: FairPool | None = None, meter: Meter | None = None
    ) -> None:
        self._request = request
        self._pool = pool
        self._compiling = compiling or pool
        self.caller = caller_of(request.scope)
        self._who = who_asks(request)
        self._left = _SHORT
        self.meter = meter

    async def read(self, size: int, function: Callable[..., TokenIds], *arguments: Any) -> TokenIds:
        """``function(*arguments)``, which turns about ``size`` characters into tokens.

        Raises:
            ClientGone: the client left before its turn came.
            ApiError: 429; too much of this caller waits to be read.
        """
        if size <= self._left:
            self._left -= size
            ids = function(*arguments)
        else:
            ids = await self.aside(partial(function, *arguments))
        if self.meter is not None:
            self.meter.read(len(ids))
        return ids

    async def aside(self, work: Callable[[], T]) -> T:
        """``work()``, beside the event loop, when the caller's turn comes. Raises as ``read`` does."""
        return await self._in_turn(self._pool, work)

    async def made(self, parts: int, work: Callable[[], T]) -> T:
        """``work()``, which goes through ``parts`` of a request, such as messages: beside the event loop where they are
        many. Raises as ``read`` does."""
        return work() if parts <= _FEW_PARTS else await self.aside(work)

    async def compile(self, work: Callable[[], T]) -> T:
        """``work()``, which compiles a grammar, when the caller's turn comes. Raises as ``read`` does."""
        return await self._in_turn(self._compiling, work)

    async def _in_turn(self, pool: FairPool, work: Callable[[], T]) -> T:
        # In a tuple: nothing at all is what a client leaves behind that goes.
        (result,) = await unless_gone(self._request, pool.run(self._who, lambda: (work(),)))
        return result
