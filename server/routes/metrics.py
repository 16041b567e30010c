"""``GET /metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ladle.server.routes import state_of

router = APIRouter()


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, response_model=None)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
