"""Searches of the web that a request offers beside its functions. A model decides whether to use what it is offered,
and no model here uses them, so an agent that always offers them gets its answer; who offers nothing else, or wants one
to be used, is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BeforeValidator, ConfigDict, Discriminator

from ladle.merging.exceptions import InputError
from ladle.server.http.strict_model import StrictModel

_SEARCH = re.compile(r"web_search(_preview)?(_\d{4}_?\d\d_?\d\d)?")


class WebSearchTool(StrictModel):
    """An entry of ``tools``: a search of the web, which is passed over beside functions, whatever it says."""

    model_config = ConfigDict(extra="ignore")

    type: str


def _is_search(kind: Any) -> bool:
    return isinstance(kind, str) and _SEARCH.fullmatch(kind) is not None


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<web_search>" if _is_search(kind) else f"<{kind}>" if isinstance(kind, str) else None


OF_TOOLS = Discriminator(_kind)
"""Tells tools by their type: ``<web_search>`` is any search of the web."""


def only_tools(*kinds: str, searches: bool = True, default: str | None = None) -> BeforeValidator:
    """Refuses tools of another ``type`` than ``kinds``, and ``searches`` where they may be, by the name of theirs.
    ``default``: the type of one that does not say it; None where it must."""
    allowed = ", ".join(kinds)

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"allowed: an object with a type, one of {allowed}")
        kind = value.get("type")
        if kind is None and default is not None:
            return {**value, "type": default}
        if kind in kinds or (searches and _is_search(kind)):
            return value
        raise InputError("type", kind, allowed, None if kind is None else "this server has no such tool")

    return BeforeValidator(check)


def require_beside(tools: Sequence[Any], functions: int) -> None:
    """Raise InputError for a search where there are no ``functions`` beside it."""
    for index, tool in enumerate(tools):
        if isinstance(tool, WebSearchTool) and not functions:
            reason = "this server has no such tool, and there are no functions beside it"
            raise InputError(f"tools[{index}].type", tool.type, "function", reason)
