"""Request bodies as strict JSON: no NaN or Infinity, no broken Unicode, a JSON content type; and longer ones checked
away from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request, Response
from fastapi._compat import ModelField
from fastapi.routing import APIRoute
from pydantic_core import from_json

from ladle.server.access.security import who_asks
from ladle.server.api_errors import ApiError

_LONG = 1 << 14  # bytes from which reading leaves the event loop: so many can hold a thousand messages or values
_VALUES = 16  # bytes of the largest body for each value that may be in one, and 128 for each name of a field
_ESCAPES = 4  # bytes of the largest body for each backslash: what is escaped takes ten times as long to read
_FEWEST = 1 << 16

Characters = npt.NDArray[np.uint8]
"""The bytes of a body."""


class StrictRequest(Request):
    """A request whose ``json()`` refuses what the JSON standard refuses (Python's parser takes NaN and lone
    surrogates)."""

    async def body(self) -> bytes:
        body = await super().body()
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Forms and plain text are what a foreign web page could send to a local server without asking the browser.
        if body and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            message = f"Content-Type: {kind or 'missing'!r} is not allowed; allowed: application/json"
            raise ApiError(415, message, code="unsupported_media_type")
        return body

    async def json(self) -> Any:
        body = await self.body()
        state = self.app.state.server
        most = state.settings.max_body_bytes
        if len(body) < _LONG:
            return _read(body, most)
        # In turns: what reads a body holds the interpreter. What checks it is called back for every message and field,
        # which lets the event loop go on between any two of them.
        return await state.reading.run(who_asks(self), _checked, body, most, self.scope["route"].check)


Check = Callable[..., tuple[Any, list[dict[str, Any]]]]
"""Gives the request that a JSON value is, and what is wrong with it; ``loc``: where the value stands."""


@dataclass(frozen=True)
class CheckedBody:
    """What checking a body gave: the request and no errors, None and some, or what broke the check."""

    value: Any
    errors: list[dict[str, Any]]
    failure: Exception | None = None

    def outcome(self) -> tuple[Any, list[dict[str, Any]]]:
        """Value and errors. Raises what broke the check."""
        if self.failure is not None:
            raise self.failure
        return self.value, self.errors


class JsonRoute(APIRoute):
    """A route that reads its body through StrictRequest."""

    check: Check

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if self.body_field is not None:
            self.check = _taking_checked(self.body_field)
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            try:
                return await handler(StrictRequest(request.scope, request.receive))
            except RecursionError:
                raise ApiError(400, "body: nested too deeply to be read", code="invalid_json") from None

        return strict


def _taking_checked(field: ModelField) -> Check:
    """How ``field`` checks a value. From now on it takes what has been checked already as it is."""
    check: Check = field.validate

    def validate(value: Any, values: Mapping[str, Any] = {}, *, loc: tuple[int | str, ...] = ()) -> Any:
        return value.outcome() if isinstance(value, CheckedBody) else check(value, values, loc=loc)

    field.validate = validate  # type: ignore[method-assign]
    return check


def _checked(body: bytes, most_bytes: int, check: Check) -> CheckedBody:
    document = _read(body, most_bytes)
    try:
        return CheckedBody(*check(document, loc=("body",)))
    except Exception as failure:  # raised where one is expected: whoever reads bodies makes a refusal of it
        return CheckedBody(None, [], failure)


def _read(body: bytes, most_bytes: int) -> Any:
    require_few_values(body, most_bytes)
    return parse(body)


def require_few_values(body: bytes, most_bytes: int) -> None:
    """Raise ApiError (400) for a body of so many values that making and checking them would hold everybody else up,
    whatever thread it happened on: one for every 16 bytes of the largest body is allowed, a name for every 128, and a
    backslash for every 4."""
    most_values = max(_FEWEST, most_bytes // _VALUES)
    most_names = max(_FEWEST // 8, most_bytes // (8 * _VALUES))
    if len(body) <= most_names:
        return
    # With numpy, which lets other threads go on meanwhile.
    characters = np.frombuffer(body, np.uint8)
    most_escapes = max(_FEWEST, most_bytes // _ESCAPES)
    if int(np.count_nonzero(characters == ord("\\"))) > most_escapes:
        reason = f"more than {most_escapes} backslashes are not allowed in one body"
        raise ApiError(400, f"body: {reason}", code="body_too_large")
    values, names = _counted(characters)
    if values <= most_values and names <= most_names:
        return
    # What looks like many may stand in texts.
    quotes = _quotes(characters)
    texts = int(np.count_nonzero(quotes)) // 2
    if texts <= most_values + most_names:
        values, names = _counted(characters[~np.logical_xor.accumulate(quotes)])
    if values > most_values or names > most_names or texts > most_values + most_names:
        what = f"more than {most_values} values or {most_names} names of fields are not allowed in one body"
        raise ApiError(400, f"body: {what}", code="body_too_large")


def _counted(characters: Characters) -> tuple[int, int]:
    """Values and names in JSON without texts; of one with texts, no fewer."""
    values = sum(int(np.count_nonzero(characters == ord(sign))) for sign in ",[{")
    return values, int(np.count_nonzero(characters == ord(":")))


def _quotes(characters: Characters) -> npt.NDArray[np.bool_]:
    """Where texts begin and end: quotation marks that no backslash escapes."""
    quotes = characters == ord('"')
    places = np.arange(len(characters), dtype=np.int32)
    others = np.maximum.accumulate(np.where(characters != ord("\\"), places, np.int32(-1)))
    # As many backslashes as stand right before a place: an odd number of them escapes it.
    quotes[1:] &= (places[:-1] - others[:-1]) % 2 == 0
    return quotes


def parse(body: bytes) -> Any:
    """The JSON value in ``body``. Raises ApiError (400) saying where it breaks."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: not valid JSON: {error}", code="invalid_json") from None
