"""Which HTTP request a piece of work belongs to, for logs and traces."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# What a proxy may have called the request already; anything else is not repeated in headers and logs.
_GIVEN = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass
class RequestContext:
    """What is known of the request that a task works for.

    Attributes:
        id: also sent as ``x-request-id``.
        path: what was called, without a proxy's prefix.
        facts: what is to be logged of it when its answer has ended; never a prompt or an answer, unless the operator
            asks for them.
    """

    id: str
    path: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


_CURRENT: ContextVar[RequestContext | None] = ContextVar("ladle_request", default=None)


def current() -> RequestContext | None:
    """The request that this code works for, if any."""
    return _CURRENT.get()


def begin(given: str = "", path: str = "") -> RequestContext:
    """A new request, for this task and those that it starts. ``given``: its ``x-request-id``, kept if it is a plain
    word of at most 128 characters."""
    context = RequestContext(given if _GIVEN.fullmatch(given) else f"req-{uuid.uuid4().hex}", path)
    # Never taken back: the web server runs every request in a task of its own, and what it logs when that fails is
    # about this request.
    _CURRENT.set(context)
    return context
