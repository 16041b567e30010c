"""``GET /`` and ``GET /playground/{name}``: a page to try preferences on, served from the package as it lies there, and
the table of steering options as a script."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response

from ladle.option_kinds import Count, Kind, Number, Objects, OneOf, Record, Text, Weights
from ladle.server.api_errors import ApiError
from ladle.steering_options import OPTIONS

router = APIRouter()

_PAGE = "index.html"
_OPTIONS = "steering_options.js"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from anywhere else, nothing inline: a prompt or an answer that holds markup stays text.
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_HEADERS = {
    # Asked for again every time, and not sent again while it is the same: a new version is seen at once.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """One file of the page.

    Attributes:
        body: its bytes.
        media_type: as ``Content-Type`` says it.
        tag: its ETag.
    """

    body: bytes
    media_type: str
    tag: str


@cache
def assets() -> dict[str, Asset]:
    """The files of the page by name, read once. There are no folders in it, so a name is no path."""
    files_by_name = {_OPTIONS: _asset(_OPTIONS, _options_script().encode())}
    for entry in (files("ladle.server") / "playground").iterdir():
        if _ending(entry.name) in _TYPES:
            files_by_name[entry.name] = _asset(entry.name, entry.read_bytes())
    return files_by_name


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _asset(name: str, body: bytes) -> Asset:
    return Asset(body, _TYPES[_ending(name)], f'"{hashlib.sha256(body).hexdigest()[:20]}"')


def _options_script() -> str:
    """The options that the page makes controls of, as a constant."""
    controls = {
        name: {"label": option.label, "hint": option.text, "universal": option.universal, **_control(option.kind)}
        for name, option in OPTIONS.items()
        if option.label
    }
    head = "// The table of steering options, as far as the page makes controls of it; the server writes this file."
    return f"{head}\n\nexport const OPTIONS = {json.dumps(controls, indent=2)};\n"


def _control(kind: Kind) -> dict[str, Any]:
    """What a control for a value of ``kind`` has to know: the choices; that it is text, or JSON; or the bounds."""
    if isinstance(kind, OneOf):
        return {"choices": list(kind.names)}
    if isinstance(kind, Text):
        return {"text": True}
    if isinstance(kind, (Objects, Record, Weights)):
        return {"json": True, "example": kind.example}
    if isinstance(kind, Count):
        return {"whole": True, "minimum": 1} | ({} if kind.most is None else {"maximum": kind.most})
    assert isinstance(kind, Number), f"the page has no control for {type(kind).__name__}"
    return {"minimum": kind.least, "maximum": kind.most} | ({"open": True} if kind.open else {})


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page(request: Request) -> Response:
    """The page. It needs no family, so it is there while one is being loaded."""
    return _answer(request, assets()[_PAGE])


@router.api_route("/playground/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def asset(name: str, request: Request) -> Response:
    """A style sheet, a script or an image of the page."""
    file = assets().get(name)
    if file is None or name == _PAGE:
        raise ApiError(404, f"no such path: {request.method} {request.url.path[:200]}")
    return _answer(request, file)


def _answer(request: Request, asset: Asset) -> Response:
    headers = {**_HEADERS, "ETag": asset.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
