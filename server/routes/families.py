"""``GET /v1/families`` and ``GET /v1/families/{name}``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ladle.guidance import registry
from ladle.guidance.methods.routed_method import RoutedMethod
from ladle.guidance.monitors import family_monitors
from ladle.guidance.target import reachable
from ladle.merging.exceptions import did_you_mean
from ladle.merging.family.calibration import Calibration
from ladle.merging.family.family import Family, MemberInfo
from ladle.merging.preferences.simplex import grid
from ladle.server.api_errors import ApiError
from ladle.server.fields.thinking_options import ThinkingFields, ThinkingOptions, verifier_of
from ladle.server.replies.families import (
    CalibrationReply,
    FamilyList,
    FamilyReply,
    MapPoint,
    MemberReply,
    MethodReply,
    ThinkingTagsReply,
)
from ladle.server.replies.thoughts import VerifierReply
from ladle.server.routes import answers, state_of
from ladle.server.serving import Serving
from ladle.server.steering import describe_monitor
from ladle.server.text.thinking_tags import ThinkingTags

router = APIRouter()


@router.get(
    "/v1/families",
    summary="The families served here",
    responses=answers(FamilyList, 401, 503),
    response_model=None,
)
async def families(request: Request) -> JSONResponse:
    """The first one answers requests that name none."""
    state = state_of(request)
    state.require()
    served = [hosted.live for hosted in state.hosting.families.values()]
    return JSONResponse({"object": "list", "data": [describe_family(serving) for serving in served]})


@router.get(
    "/v1/families/{name}",
    summary="Objectives, methods, members and presets of a family",
    responses=answers(FamilyReply, 401, 404, 503),
    response_model=None,
)
async def family_by_name(name: str, request: Request) -> JSONResponse:
    """Bone Soup solves B^T lam = mu, where row j of `matrix` (B) holds the reward weights of backbone j."""
    state = state_of(request)
    state.require()
    hosted = state.hosting.families.get(name)
    if hosted is None:
        raise unknown_family(name, state.hosting.families)
    return JSONResponse(describe_family(hosted.live))


def unknown_family(name: str, known: Iterable[str]) -> ApiError:
    """404 with the families that there are."""
    names = list(known)
    slip = did_you_mean(name[:200], names)
    message = f"name: no family {name[:200]!r} is served here{slip}; known: {', '.join(names) or 'none'}"
    return ApiError(404, message, param="name", code="family_not_found")


def describe_family(serving: Serving) -> FamilyReply:
    """A family as clients see it."""
    family = serving.family
    methods = registry.available(family)
    return {
        "name": family.name,
        "objectives": list(family.objectives),
        "default_method": registry.default_method(family),
        "matrix": family.matrix.tolist() if family.matrix is not None else None,
        "methods": {name: _method(name, ready, reason) for name, (ready, reason) in methods.items()},
        "members": [_member(member) for member in family.members()],
        "sampling": _sampling(family),
        "presets": {name: preset.model_dump(exclude_none=True) for name, preset in family.manifest.presets.items()},
        "calibration": _calibration(family.calibration),
        "thinking": _thinking(serving.thinking),
        "monitors": [describe_monitor(monitor) for monitor in family_monitors(family)],
    }


def _thinking(tags: ThinkingTags | None) -> ThinkingTagsReply | None:
    if tags is None:
        return None
    own = verifier_of(tags, ThinkingFields(thinking=ThinkingOptions()), 1)  # type: ignore[call-arg]
    verifier: VerifierReply | None = None
    if own is not None:
        verifier = {"every": own.every, "ask": own.question.text, "above": own.above}
    return {"open": tags.open, "close": tags.close, "budgets": dict(tags.budgets), "verifier": verifier}


def _sampling(family: Family) -> dict[str, Any]:
    table = family.manifest.sampling
    return {} if table is None else table.model_dump(exclude_none=True, exclude_defaults=True)


def _calibration(calibration: Calibration | None) -> CalibrationReply | None:
    if calibration is None:
        return None
    ends_of = reachable(calibration)
    return {
        "steering": calibration.steering,
        "answers": calibration.answers,
        "reachable": {name: list(ends) for name, ends in ends_of.items()},
        "map": _map(calibration),
    }


def _map(calibration: Calibration) -> list[MapPoint]:
    """The expected quantiles at a grid of preferences, fine enough to be drawn."""
    names = calibration.objectives
    points = np.array(grid(len(names), 9 if len(names) <= 3 else 3))
    rows = zip(points.tolist(), calibration.quantiles(points).tolist(), strict=True)
    return [
        {
            "preference": dict(zip(names, weights, strict=True)),
            "quantiles": {name: round(value, 4) for name, value in zip(names, values, strict=True)},
        }
        for weights, values in rows
    ]


def _method(name: str, ready: bool, reason: str) -> MethodReply:
    method = registry.METHODS[name]
    routes = isinstance(method, RoutedMethod)
    return {
        "available": ready,
        "reason": reason or None,
        "preference": "required" if method.takes_preference else "optional" if routes else "ignored",
        "options": sorted(method.options),
        "needs": sorted(method.needs),
        "strength": getattr(method, "default_strength", 1.0) if "strength" in method.options else None,
    }


def _member(member: MemberInfo) -> MemberReply:
    return {
        "name": member.name,
        "kind": member.kind,
        "storage": member.storage,
        "rank": member.rank,
        "parameters": member.parameters,
        "objective": member.objective,
        "rewards": list(member.rewards) if member.rewards is not None else None,
    }
