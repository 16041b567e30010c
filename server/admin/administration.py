"""What an administrator may change while the server runs. Requests that run are never disturbed: a family that is
loaded anew is another engine beside the old one, which ends when the last request that holds it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ladle.merging.exceptions import FamilyError, InputError
from ladle.server.api_errors import ApiError, unavailable
from ladle.server.hosting import Hosted
from ladle.server.state import FamilyLoader, Phase, ServerState

logger = logging.getLogger(__name__)

Order = Literal["beside", "after"]


async def load(state: ServerState, name: str, first: bool) -> Hosted:
    """Load the family that is available as ``name`` and serve it; ``first``: to requests that name none, too.

    Raises:
        ApiError: 404 for a name that is not available, 409 for a family that cannot be served or is already, or while
            another change is under way.
    """
    loader = _loader(state)
    source = await state.hosting.beside(lambda: loader.source_of(name))
    if source is None:
        known = ", ".join(await state.hosting.beside(loader.available)) or "none"
        raise ApiError(404, f"family: no {name[:200]!r} is available; known: {known}", param="family")
    with _changing(state, f"loading {name}"):
        return await _load(state, loader, source, frozenset(), None, first)


async def reload(
    state: ServerState,
    name: str,
    order: Order,
    left_out: frozenset[str] | None = None,
    wanted: str | None = None,
) -> Hosted:
    """Read a family's files again, without the members ``left_out`` (None: those that are left out now).

    Args:
        order: ``beside`` loads it while the old one serves, which takes the memory of both; ``after`` first lets the
            old one go, and answers 503 meanwhile.
        wanted: a member that it must have then.

    Raises:
        ApiError: as for ``load``, and 404 for a member that is not there. The old one goes on where that is found out
            ``beside`` it; with ``after`` it may be gone.
    """
    loader, old = _loader(state), state.hosting.families[name]
    left_out = old.left_out if left_out is None else left_out
    with _changing(state, f"reloading {name}"):
        if wanted is not None:
            members = await state.hosting.beside(lambda: _members(loader, old.source, left_out))
            if wanted not in members:
                message = f"member: no {wanted[:200]!r} in {name!r}; known: {', '.join(members) or 'none'}"
                raise ApiError(404, message, param="member", code="member_not_found")
        if order == "beside":
            return await _load(state, loader, old.source, left_out, old, old is state.hosting.default)
        first = old is state.hosting.default
        state.hosting.reserved[name] = f"the family {name!r} is being loaded anew"
        try:
            state.hosting.remove(name)
            await old.gone.wait()
            return await _load(state, loader, old.source, left_out, None, first)
        finally:
            del state.hosting.reserved[name]


def unload(state: ServerState, name: str) -> Hosted:
    """Give no further requests to a family, and its memory back when the last one has ended. Raises ApiError (409)."""
    with _changing(state, f"unloading {name}"):
        return state.hosting.remove(name)


def pause(state: ServerState) -> None:
    """Take no work; what runs is finished. Raises ApiError (409) while loading or shutting down."""
    _switch(state, Phase.READY, Phase.PAUSED)


def resume(state: ServerState) -> None:
    """Take work again. Raises ApiError (409) while loading or shutting down."""
    _switch(state, Phase.PAUSED, Phase.READY)


async def reset_caches(state: ServerState, hosted: Hosted, kinds: Collection[str]) -> dict[str, int]:
    """Empty caches of ``kinds`` prefix, merged and grammar; how many entries of each were dropped.

    Raises:
        ApiError: 503 once its engine has stopped.
    """
    dropped = {}
    try:
        if "prefix" in kinds and hosted.engine_admin is not None:
            dropped["prefix"] = await asyncio.wrap_future(hosted.engine_admin.forget_prefixes())
        if "merged" in kinds and hosted.engine_admin is not None:
            dropped["merged"] = await asyncio.wrap_future(hosted.engine_admin.drop_merged())
    except RuntimeError:
        raise unavailable("the engine has stopped", "engine_stopped") from None
    if "grammar" in kinds:
        dropped["grammar"] = hosted.live.grammars.forget()
    return dropped


def _members(loader: FamilyLoader, source: str, left_out: frozenset[str]) -> list[str]:
    try:
        return loader.members(source, left_out)
    except FamilyError as error:
        raise ApiError(409, f"nothing was loaded: {error}", code="broken_family") from None


def _loader(state: ServerState) -> FamilyLoader:
    if state.loader is None or state.phase not in (Phase.READY, Phase.PAUSED):
        reason = "nothing can be loaded here" if state.loader is None else f"the server is {state.phase}"
        raise ApiError(409, f"{reason}; nothing was changed", code="not_now")
    return state.loader


async def _load(
    state: ServerState,
    loader: FamilyLoader,
    source: str,
    left_out: frozenset[str],
    replaced: Hosted | None,
    first: bool,
) -> Hosted:
    try:
        hosted = await state.hosting.beside(lambda: loader.load(source, left_out))
    except (FamilyError, InputError) as error:
        raise ApiError(409, f"nothing was loaded: {error}", code="broken_family") from None
    except (MemoryError, torch.OutOfMemoryError) as error:
        logger.warning("a family was not loaded: %s", error)
        message = "there is no memory for it; unload another family, or reload with order 'after'"
        raise ApiError(409, message, code="out_of_memory") from None
    except Exception as error:
        # Nothing that the family's files explain: whatever it is may meet the next load, too.
        state.loads.failed(error)
        raise
    state.loads.succeeded()
    reason = state.hosting.conflict(hosted.live, replaced)
    if reason is None and replaced is not None and hosted.name != replaced.name:
        reason = f"its name is {hosted.name!r} now, and was {replaced.name!r}; load it under the new name"
    if reason is None and state.phase not in (Phase.READY, Phase.PAUSED):
        reason = f"the server is {state.phase}"
    if reason is not None:
        await state.hosting.discard(hosted)
        raise ApiError(409, f"nothing was loaded: {reason}", code="conflict")
    state.host(hosted, first)
    logger.info("%s is served from %s", hosted.name, source)
    return hosted


@contextmanager
def _changing(state: ServerState, what: str) -> Iterator[None]:
    if state.hosting.changing is not None:
        message = f"{state.hosting.changing} is under way; one change at a time"
        raise ApiError(409, message, code="busy", headers={"Retry-After": "5"})
    state.hosting.changing = what
    try:
        yield
    finally:
        state.hosting.changing = None


def _switch(state: ServerState, before: Phase, after: Phase) -> None:
    if state.phase not in (before, after):
        raise ApiError(409, f"the server is {state.phase}; it was left so", code="not_now")
    state.phase = after
