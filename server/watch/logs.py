"""Log lines for people or for programs, each with the id of the request that it is about.

What a request says is in none of them unless the operator asks for it: our own lines never quote it, and the messages
of exceptions, which may, are left out.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from ladle.server.watch import request_context

# What these threads do comes before requests, or sees nothing of them but tensors.
_OWN_THREADS = ("MainThread", "ladle-engine", "ladle-load", "ladle-merge")
_LEFT_OUT = "(its message may quote the request; log_prompts shows it)"

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logging(level: str, layout: Literal["text", "json"] = "text", prompts: bool = False) -> None:
    """Our log lines and the web server's at ``level``, everybody else's from warnings on; to stderr.

    ``prompts``: exceptions may say what they were about.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_about)
    handler.setFormatter(JsonLines(prompts) if layout == "json" else TextLines(prompts))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    if layout == "json":
        logging.captureWarnings(True)
    for name in ("ladle", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())


def _about(record: logging.LogRecord) -> bool:
    """Notes which request a line is about. A filter, because a handler may format it elsewhere."""
    context = request_context.current()
    if context is not None and not hasattr(record, "request_id"):
        record.request_id = context.id
    return True


class _Discreet(logging.Formatter):
    def __init__(self, prompts: bool) -> None:
        super().__init__()
        self._prompts = prompts

    def error(self, record: logging.LogRecord) -> str | None:
        """The traceback of ``record``, if it has one."""
        if not record.exc_info or record.exc_info[1] is None:
            return None
        own = str(record.threadName).startswith(_OWN_THREADS) and not hasattr(record, "request_id")
        if self._prompts or own:
            return self.formatException(record.exc_info)
        return "".join(_discreet(record.exc_info[1])).rstrip()


def _discreet(error: BaseException | None) -> list[str]:
    """Where ``error`` and its causes come from and of which type they are, without what they say."""
    lines: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        lines.insert(0, f"{type(error).__module__}.{type(error).__qualname__} {_LEFT_OUT}\n")
        lines[:0] = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return lines


class TextLines(_Discreet):
    """``time LEVEL logger: message [request] name=value ...``"""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record)
        line = f"{moment} {record.levelname} {record.name}: {record.getMessage()}"
        if hasattr(record, "request_id"):
            line += f" [{record.request_id}]"
        facts = _facts(record)
        line += "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in facts.items())
        error = self.error(record)
        return line if error is None else f"{line}\n{error}"


class JsonLines(_Discreet):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``; where there are any ``request_id``,
    ``error`` (a traceback) and the line's own facts."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if hasattr(record, "request_id"):
            line["request_id"] = record.request_id
        line.update(_facts(record))
        error = self.error(record)
        if error is not None:
            line["error"] = error
        return json.dumps(line, ensure_ascii=False, default=str)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = getattr(record, "facts", {})
    return facts
