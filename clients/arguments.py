"""What people type, as the SDK wants it."""

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ladle.clients.errors import UsageError


def slip_of(given: str, names: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` for the name that ``given`` is a slip of; empty where there is none."""
    matches = get_close_matches(given, list(names), n=1, cutoff=0.7)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def not_among(given: str, names: Iterable[str], kind: str) -> str:
    """Why ``given`` is refused as the name of a ``kind``: there is none of that name, and which there are."""
    known = list(names)
    return f"there is no {kind} {given!r}{slip_of(given, known)}; known: {', '.join(known) or 'none'}"


def parse_preference(text: str | None, name_of_it: str = "preference") -> dict[str, float] | None:
    """``positive=0.8,concise=.2`` (commas or spaces between) as a mapping; None stays None. ``name_of_it`` is what
    errors call it.

    Raises:
        UsageError: something else; whether the objectives exist is for the server to judge.
    """
    if text is None:
        return None
    preference: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, sign, weight = part.partition("=")
        try:
            value = float(weight)
        except ValueError:
            value = None
        if not name or not sign or value is None:
            raise UsageError(f"{name_of_it}: {part!r} is not allowed; allowed: objective=weight, such as positive=0.8")
        if name in preference:
            raise UsageError(f"{name_of_it}: {name!r} is given twice")
        preference[name] = value
    if not preference:
        raise UsageError(f"{name_of_it}: nothing given; allowed: objective=weight, such as positive=0.8,concise=0.2")
    return preference


def parse_steering(entries: Sequence[str] | None) -> dict[str, Any] | None:
    """``candidates=10``, ``value=explicit``, ``terms=[{"source": "base", "weight": 1}]``: values are JSON, or
    text where they are not; None without entries.

    Raises:
        UsageError: no ``=``, or a key twice.
    """
    steering: dict[str, Any] = {}
    for entry in entries or ():
        key, sign, value = entry.partition("=")
        if not key or not sign:
            raise UsageError(f"steering: {entry!r} is not allowed; allowed: KEY=VALUE, such as value=explicit")
        if key in steering:
            raise UsageError(f"steering: {key!r} is given twice")
        try:
            steering[key] = json.loads(value)
        except ValueError:
            steering[key] = value
    return steering or None


def parse_rank(by: str | None, keep: int | None) -> dict[str, Any] | None:
    """``steering.rank`` from its two flags: a name, ``ask=QUESTION`` or ``vote=PATTERN``; None stays None.

    Raises:
        UsageError: ``keep`` without what to rank by.
    """
    if by is None:
        if keep is not None:
            raise UsageError("keep: only together with --rank, which says what the best are")
        return None
    form, sign, text = by.partition("=")
    asked: str | dict[str, str] = {form: text} if sign and form in ("ask", "vote") else by
    return {"by": asked} if keep is None else {"by": asked, "keep": keep}


def parse_search(text: str | None) -> dict[str, Any] | None:
    """``steering.search`` from ``explicit`` or ``explicit,until=16,draws=4,beam=2``, where ``draws=1-10`` lets entropy
    decide; None stays None.

    Raises:
        UsageError: something else; what the values mean is for the server to judge.
    """
    if text is None:
        return None
    by, *rest = (part.strip() for part in text.split(","))
    search: dict[str, Any] = {"by": by}
    for part in rest:
        key, sign, value = part.partition("=")
        known = key in ("until", "draws", "beam") and key not in search
        most = value.removeprefix("1-")
        if not by or "=" in by or not known or not sign or not value or (key != "until" and not most.isdecimal()):
            return _no_search(text)
        if key == "draws" and most != value:
            search[key] = {"most": int(most)}
        else:
            search[key] = int(value) if value.isdecimal() else value
    return search if by and "=" not in by else _no_search(text)


def _no_search(text: str) -> dict[str, Any]:
    raise UsageError(
        f"search: {text!r} is not allowed; allowed: BY or BY,until=16,draws=4,beam=2, such as explicit or "
        "likelihood,until=sentence,draws=1-10; for more write --steering search='{...}'"
    )


def parse_monitor(text: str | None) -> dict[str, Any] | None:
    """``steering.monitor`` from ``harm=0.9``, a value and its bound; None stays None.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    name, sign, bound = text.rpartition("=")
    try:
        return {"value": name, "above": float(bound)} if name and sign else _no_monitor(text)
    except ValueError:
        return _no_monitor(text)


def _no_monitor(text: str) -> dict[str, Any]:
    raise UsageError(
        f"monitor: {text!r} is not allowed; allowed: VALUE=BOUND, such as harm=0.9; "
        "for more write --steering monitor='{...}'"
    )


def parse_thinking(budget: int | None, every: int | None) -> dict[str, Any] | None:
    """``thinking`` from its two flags; None without both."""
    if budget is None and every is None:
        return None
    thinking: dict[str, Any] = {} if budget is None else {"budget": budget}
    return thinking if every is None else {**thinking, "verifier": {"every": every}}


def parse_schema(text: str | None) -> dict[str, Any] | None:
    """The JSON schema in a file; None stays None.

    Raises:
        UsageError: there is no such file, or it holds something else.
    """
    if text is None:
        return None
    try:
        schema = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"json-schema: {text!r} is not allowed; allowed: a file with a JSON schema ({error})"
        ) from None
    if not isinstance(schema, dict):
        raise UsageError(
            f"json-schema: {text!r} is not allowed; allowed: a file with a JSON schema, which is an object"
        )
    return schema


def given(**options: Any) -> Any:
    """The options that were given, ready to be passed on."""
    return {name: value for name, value in options.items() if value is not None}
