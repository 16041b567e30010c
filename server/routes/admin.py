"""``/v1/admin/``: what an administrator may see and change. All of it needs a key with the scope ``admin``, which is
seen to before anything here is reached (``security.KeyCheck``)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from ladle.server.admin import administration
from ladle.server.admin.admin_types import (
    CacheList,
    CacheReset,
    CachesReply,
    DroppedList,
    DroppedReply,
    HostedReply,
    LoadRequest,
    StatusReply,
)
from ladle.server.admin.administration import Order
from ladle.server.api_errors import ApiError
from ladle.server.hosting import Hosted
from ladle.server.http.json_request import JsonRoute
from ladle.server.routes import answers, state_of
from ladle.server.routes.families import unknown_family
from ladle.server.state import ServerState

router = APIRouter(prefix="/v1/admin", route_class=JsonRoute)
Name = Annotated[str, Path(max_length=200)]
How = Annotated[
    Order,
    Query(description="`beside` the old one, with the memory of both; or `after` it has gone, with 503 meanwhile"),
]


@router.get("/status", summary="What is served", responses=answers(StatusReply, 401), response_model=None)
async def status(request: Request) -> JSONResponse:
    """Phase, families with their memory and requests, and what may be loaded."""
    return JSONResponse(await _status(state_of(request)))


@router.post(
    "/families",
    summary="Load a family",
    responses=answers(HostedReply, 400, 401, 404, 409, 413, 415),
    response_model=None,
)
async def load(body: LoadRequest, request: Request) -> JSONResponse:
    """Answers when it is served. What may be loaded is for the operator to say: built-in families and the folders in
    `--families-dir`, by name."""
    state = state_of(request)
    return JSONResponse(_describe(await administration.load(state, body.family, body.first)))


@router.post(
    "/families/{name}/reload",
    summary="Load a family anew",
    responses=answers(HostedReply, 400, 401, 404, 409),
    response_model=None,
)
async def reload(name: Name, request: Request, order: How = "beside") -> JSONResponse:
    """Reads its files again. Requests that run finish on what they began with."""
    state = state_of(request)
    _find(state, name)
    return JSONResponse(_describe(await administration.reload(state, name, order)))


@router.post(
    "/families/{name}/unload",
    summary="Unload a family",
    responses=answers(HostedReply, 400, 401, 404, 409),
    response_model=None,
)
async def unload(name: Name, request: Request) -> JSONResponse:
    """No further requests get it. Its memory is given back when those that run have ended, and it is gone from the
    status then."""
    state = state_of(request)
    hosted = _find(state, name)
    reply = _describe(hosted)
    administration.unload(state, name)
    return JSONResponse({**reply, "state": "retiring"})


@router.post(
    "/families/{name}/members/{member}/load",
    summary="Load a member",
    responses=answers(HostedReply, 400, 401, 404, 409),
    response_model=None,
)
async def load_member(name: Name, member: Name, request: Request, order: How = "beside") -> JSONResponse:
    """Puts back one that was left out, or takes up one that was added to family.toml. The family is loaded anew."""
    state = state_of(request)
    hosted = _find(state, name)
    left_out = hosted.left_out - {member}
    loaded = await administration.reload(state, name, order, left_out, member)
    return JSONResponse(_describe(loaded))


@router.post(
    "/families/{name}/members/{member}/unload",
    summary="Unload a member",
    responses=answers(HostedReply, 400, 401, 404, 409),
    response_model=None,
)
async def unload_member(name: Name, member: Name, request: Request, order: How = "beside") -> JSONResponse:
    """Loads the family anew without it; methods that need it are not available then. Refused where the family makes no
    sense without it."""
    state = state_of(request)
    hosted = _find(state, name)
    members = _members(hosted)
    if member not in members:
        known = ", ".join(members) or "none"
        message = f"member: no {member[:200]!r} in {name!r}; known: {known}"
        raise ApiError(404, message, param="member", code="member_not_found")
    loaded = await administration.reload(state, name, order, hosted.left_out | {member})
    return JSONResponse(_describe(loaded))


@router.post("/drain", summary="Take no work", responses=answers(StatusReply, 401, 409), response_model=None)
async def drain(request: Request) -> JSONResponse:
    """New requests get 503, `/ready` too; those that run finish, and the status says how many they are."""
    state = state_of(request)
    administration.pause(state)
    return JSONResponse(await _status(state))


@router.post("/resume", summary="Take work again", responses=answers(StatusReply, 401, 409), response_model=None)
async def resume(request: Request) -> JSONResponse:
    """Undoes `drain`."""
    state = state_of(request)
    administration.resume(state)
    return JSONResponse(await _status(state))


@router.get("/caches", summary="Caches", responses=answers(CacheList, 401), response_model=None)
async def caches(request: Request) -> JSONResponse:
    """What is kept for reuse, by family."""
    families = state_of(request).hosting.families.values()
    return JSONResponse({"data": [_caches(hosted) for hosted in families]})


@router.post(
    "/caches/reset",
    summary="Empty caches",
    responses=answers(DroppedList, 400, 401, 404, 413, 415, 503),
    response_model=None,
)
async def reset(body: CacheReset, request: Request) -> JSONResponse:
    """Running requests keep what they use."""
    state = state_of(request)
    families = list(state.hosting.families.values()) if body.family is None else [_find(state, body.family)]
    kinds = set(body.caches or ("prefix", "merged", "grammar"))
    done: list[DroppedReply] = []
    for hosted in families:
        with state.hosting.held(hosted):
            dropped = await administration.reset_caches(state, hosted, kinds)
        done.append({"family": hosted.name, "dropped": dropped})
    return JSONResponse({"data": done})


def _find(state: ServerState, name: str) -> Hosted:
    hosted = state.hosting.families.get(name)
    if hosted is None:
        raise unknown_family(name, state.hosting.families)
    return hosted


async def _status(state: ServerState) -> StatusReply:
    loader = state.loader
    available = [] if loader is None else await state.hosting.beside(loader.available)
    hosting = state.hosting
    return {
        "phase": str(state.phase),
        "requests": state.active,
        "changing": hosting.changing,
        "families": [_describe(hosted) for hosted in (*hosting.families.values(), *hosting.retiring)],
        "available": available,
    }


def _describe(hosted: Hosted) -> HostedReply:
    stats = hosted.live.engine.stats()
    weights, kv = (None, None) if hosted.engine_admin is None else hosted.engine_admin.memory
    return {
        "name": hosted.name,
        "state": "retiring" if hosted.retired else "serving",
        "source": hosted.source,
        "members": _members(hosted),
        "left_out": sorted(hosted.left_out),
        "loaded_at": int(hosted.loaded_at),
        "requests": hosted.users,
        "running": stats.running,
        "waiting": stats.waiting,
        "weights_bytes": weights,
        "kv_bytes": kv,
    }


def _members(hosted: Hosted) -> list[str]:
    return [entry.name for _, entry in hosted.live.family.manifest.members()]


def _caches(hosted: Hosted) -> CachesReply:
    reply: CachesReply = {
        "family": hosted.name,
        "prefix": None,
        "merged": None,
        "grammars": len(hosted.live.grammars),
    }
    if hosted.engine_admin is not None:
        seen = hosted.engine_admin.caches()
        reply["prefix"] = {
            "block_tokens": seen.block_tokens,
            "blocks": seen.blocks,
            "free": seen.blocks_free,
            "reusable": seen.prefix_blocks,
            "queries": seen.prefix_queries,
            "hits": seen.prefix_hits,
        }
        reply["merged"] = {
            "sets": seen.merged_sets,
            "bytes": seen.merged_bytes,
            "limit_bytes": seen.merged_limit_bytes,
            "hits": seen.merged_hits,
            "misses": seen.merged_misses,
            "evictions": seen.merged_evictions,
        }
    return reply
