"""The shapes of what administrators send and get."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from ladle.server.http.strict_model import StrictModel

CacheKind = Literal["prefix", "merged", "grammar"]


class LoadRequest(StrictModel):
    """``POST /v1/admin/families``."""

    family: Annotated[str, Field(min_length=1, max_length=200, description="a name of `available`")]
    first: bool = Field(False, description="answer requests that name no family, too")


class CacheReset(StrictModel):
    """``POST /v1/admin/caches/reset``; null means all."""

    family: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    caches: Annotated[list[CacheKind], Field(min_length=1, max_length=3)] | None = None


class HostedReply(TypedDict):
    """One load of a family.

    ``state``: ``serving``, or ``retiring`` while requests still hold it, which are ``requests``. ``running`` and
    ``waiting``: sequences. Bytes of weights (merged ones included) and of the KV pool are null where nobody knows.
    """

    name: str
    state: Literal["serving", "retiring"]
    source: str
    members: list[str]
    left_out: list[str]
    loaded_at: int
    requests: int
    running: int
    waiting: int
    weights_bytes: int | None
    kv_bytes: int | None


class StatusReply(TypedDict):
    """Answer of ``GET /v1/admin/status``. The first family answers requests that name none; ``available`` may be
    loaded; ``changing`` is the load or unload under way; ``requests`` are those that generate."""

    phase: str
    requests: int
    changing: str | None
    families: list[HostedReply]
    available: list[str]


class PrefixCacheReply(TypedDict):
    """``blocks`` of ``block_tokens`` tokens; those ``reusable`` hold a prefix. ``queries`` and ``hits`` are tokens
    looked up and found since the start."""

    block_tokens: int
    blocks: int
    free: int
    reusable: int
    queries: int
    hits: int


class MergedCacheReply(TypedDict):
    """Sets of merged full weights."""

    sets: int
    bytes: int
    limit_bytes: int
    hits: int
    misses: int
    evictions: int


class CachesReply(TypedDict):
    """The caches of one family; null where they are not known. ``grammars`` are compiled ones."""

    family: str
    prefix: PrefixCacheReply | None
    merged: MergedCacheReply | None
    grammars: int


class CacheList(TypedDict):
    """Answer of ``GET /v1/admin/caches``."""

    data: list[CachesReply]


class DroppedReply(TypedDict):
    """What was dropped of one family: reusable blocks, merged sets, grammars."""

    family: str
    dropped: dict[str, int]


class DroppedList(TypedDict):
    """Answer of ``POST /v1/admin/caches/reset``."""

    data: list[DroppedReply]
