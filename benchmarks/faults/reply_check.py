"""What must hold of any answer of the server, whatever it was asked."""

from __future__ import annotations

import json
from typing import Any

from ladle.benchmarks.faults.drawn import Drawn
from ladle.benchmarks.faults.other_apis import MESSAGES, RESPONSES
from ladle.benchmarks.faults.request_fuzzer import GENERATING

STATUSES = frozenset({200, 400, 404, 409, 413, 415, 429})
_ENDS = {
    MESSAGES: ("stop_reason", ("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")),
    RESPONSES: ("status", ("completed", "incomplete")),
}
"""Where the answers of an endpoint say how they ended, and what they may say."""
_LAST = {
    MESSAGES: ("message_stop", "error"),
    RESPONSES: ("response.completed", "response.incomplete", "response.failed"),
}
"""Types of the events that end a stream."""


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
        return f"{status} {_error(drawn, document)}"
    if drawn.path in _ENDS:
        _ended(drawn, document)
    if drawn.path in GENERATING:
        choices = document["choices"]
        if drawn.kind == "sound" and len(choices) != drawn.sequences:
            raise WrongReply(f"{len(choices)} choices instead of {drawn.sequences}")
        for index, choice in enumerate(choices):
            _finished(document, choice["finish_reason"], index)
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


def _ended(drawn: Drawn, document: Any) -> None:
    name, allowed = _ENDS[drawn.path]
    if document[name] not in allowed:
        raise WrongReply(f"{name} {document[name]}")
    cut = (document.get("incomplete_details") or {}).get("reason", document.get("stop_reason"))
    if (cut in ("refusal", "content_filter")) != bool(_stopped(document)):
        raise WrongReply(f"an end by {cut}, and monitors ended {_stopped(document)}")
    if document["usage"]["input_tokens"] < 0 or document["usage"]["output_tokens"] < 0:
        raise WrongReply(f"usage {document['usage']}")


def _finished(document: Any, reason: str, index: int) -> None:
    """Raise WrongReply unless the choice ``index`` may end for ``reason``: for a monitor, where one says that it ended
    that choice, and nowhere else."""
    if reason not in ("stop", "length", "tool_calls", "content_filter"):
        raise WrongReply(f"finish reason {reason}")
    if (reason == "content_filter") != (index in _stopped(document)):
        raise WrongReply(f"choice {index} ended by {reason}, and monitors ended {_stopped(document)}")


def _stopped(document: Any) -> list[int]:
    """Indices of the choices that monitors ended, as the answer says."""
    watched = (document.get("steering") or {}).get("monitor") or {"stopped": []}
    return [trip["index"] for trip in watched["stopped"]]


def _error(drawn: Drawn, document: Any) -> str:
    if drawn.path.startswith(MESSAGES):
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict) or set(error) != {"type", "message"} or not error["message"]:
            raise WrongReply(f"no error envelope of Anthropic's: {document}")
        return str(error["type"])
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"} or not error["message"]:
        raise WrongReply(f"no error envelope: {document}")
    return str(error["code"])


def _stream(drawn: Drawn, body: bytes) -> str:
    events = [block for block in body.split(b"\n\n") if block and not block.startswith(b":")]
    if not body.endswith(b"\n\n") or not events:
        raise WrongReply(f"a stream that ends amid an event: {body[-200:]!r}")
    if drawn.path in _LAST:
        return _named_stream(drawn, events)
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
    return f"200, then {_error(drawn, document)}"


def _named_stream(drawn: Drawn, events: list[bytes]) -> str:
    documents = []
    for event in events:
        name, _, data = event.removeprefix(b"event: ").partition(b"\ndata: ")
        documents.append(strict(data))
        if documents[-1].get("type", "").encode() != name:
            raise WrongReply(f"an event that is called otherwise than its type: {event[:200]!r}")
    ends = [document["type"] for document in documents if document["type"] in _LAST[drawn.path]]
    last = documents[-1]
    if ends != [last["type"]]:
        raise WrongReply(f"a stream that ends with {last['type']}, and has ends {ends}")
    error = last["error"] if last["type"] == "error" else last.get("response", {}).get("error")
    if error is None:
        return "200"
    if error.get("type") == "api_error" or error.get("code") == "server_error":
        raise WrongReply(f"a stream that failed: {error}")
    return f"200, then {error.get('type') or error.get('code')}"
