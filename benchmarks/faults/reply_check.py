"""What must hold of any answer of the server, whatever it was asked."""

from __future__ import annotations

import json
from typing import Any

from ladle.benchmarks.faults.request_fuzzer import Drawn

STATUSES = frozenset({200, 400, 404, 413, 415, 429})


class WrongReply(Exception):
    """An answer that the contract does not allow."""


def check(drawn: Drawn, status: int, kind: str, body: bytes) -> str:
    """What became of the request: the status, or for a stream that ended with an error that error's code.

    Args:
        kind: content type of the answer.

    Raises:
        WrongReply: with what is wrong.
    """
    if status not in STATUSES:
        raise WrongReply(f"status {status}: {body[:500]!r}")
    if kind.startswith("text/event-stream"):
        return _stream(drawn, body)
    document = strict(body)
    if status != 200:
        return f"{status} {_error(document)}"
    if drawn.path != "/v1/coefficients":
        choices = document["choices"]
        if drawn.kind == "sound" and len(choices) != drawn.sequences:
            raise WrongReply(f"{len(choices)} choices instead of {drawn.sequences}")
        if not all(choice["finish_reason"] in ("stop", "length", "tool_calls") for choice in choices):
            raise WrongReply(f"finish reasons {[choice['finish_reason'] for choice in choices]}")
        if document["usage"]["total_tokens"] < document["usage"]["prompt_tokens"]:
            raise WrongReply(f"usage {document['usage']}")
    return "200"


def strict(body: bytes) -> Any:
    """The JSON of ``body``, in which NaN and infinity are no numbers."""

    def refuse(name: str) -> None:
        raise WrongReply(f"{name} in JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except ValueError as error:
        raise WrongReply(f"no JSON ({error}): {body[:200]!r}") from None


def _error(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        raise WrongReply(f"no error envelope: {document}")
    return str(error["code"])


def _stream(drawn: Drawn, body: bytes) -> str:
    events = [block for block in body.split(b"\n\n") if block and not block.startswith(b":")]
    if not body.endswith(b"\n\n") or not events:
        raise WrongReply(f"a stream that ends amid an event: {body[-200:]!r}")
    if not all(event.startswith(b"data: ") for event in events):
        raise WrongReply("an event without data")
    *_, last = events
    for event in events[:-1]:
        if "error" in strict(event.removeprefix(b"data: ")):
            raise WrongReply("events after an error")
    if last == b"data: [DONE]":
        return "200"
    document = strict(last.removeprefix(b"data: "))
    if "error" not in document:
        raise WrongReply(f"a stream without an end: {last[:200]!r}")
    if document["error"]["type"] == "server_error":
        raise WrongReply(f"a stream that failed: {document['error']}")
    return f"200, then {_error(document)}"
