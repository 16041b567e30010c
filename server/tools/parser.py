"""Calls of functions in a growing text. A call is given out whole, once it is known to be one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import from_json

from ladle.server.http.strict_json import strict_json
from ladle.server.tools.custom_tools import INPUT
from ladle.server.tools.formats import ToolFormat


@dataclass(frozen=True)
class Call:
    """A call of a function, or of a custom tool.

    Attributes:
        name: of the function.
        arguments: a JSON object as the model wrote it, or what came of it.
        cut: whether the answer ended within it.
        custom: whether it calls a custom tool.
    """

    name: str
    arguments: str
    cut: bool = False
    custom: bool = False

    @property
    def input(self) -> str:
        """The text that a custom tool is given; as much of it as came, where the answer was cut."""
        # The last characters may be an escape of which the end is missing.
        for end in range(len(self.arguments), max(len(self.arguments) - _LONGEST_ESCAPE, 0), -1):
            with contextlib.suppress(ValueError):
                arguments = from_json(self.arguments[:end], allow_partial="trailing-strings" if self.cut else False)
                return str(arguments.get(INPUT, ""))
        return ""


_LONGEST_ESCAPE = 12  # characters: two halves of a surrogate pair
Part = str | Call
"""What an answer is made of: text and calls."""


class ToolParser:
    """Takes one answer piece by piece.

    A call is an object with the name of an offered function and an object of arguments. Whatever looks like one and is
    none stays text; white space around calls is dropped.
    """

    def __init__(
        self,
        style: ToolFormat,
        names: frozenset[str],
        several: bool,
        required: bool = False,
        custom: frozenset[str] = frozenset(),
    ) -> None:
        """``several``: whether more calls than the first count. ``required``: a grammar makes the answer calls and
        nothing else, so that there is no text, and what was cut is a part of a call. ``custom``: those of the names
        that are custom tools, which are called with a text and nothing else."""
        self._style = style
        self._names = names
        self._custom = custom
        self._several = several
        self._required = required
        self._held = ""
        self._inside = False
        self._gap = ""
        self._after_call = False
        self.calls = 0
        self.called = False
        """Whether the answer has made calls, the last of them to its end."""

    def push(self, text: str) -> list[Part]:
        """Add ``text``; what is certain now."""
        self._held += text
        return list(self._tagged() if self._style.opening else self._bare())

    def finish(self) -> list[Part]:
        """The rest, when no more text comes."""
        held, self._held = self._held, ""
        if self._style.opening and not self._inside:
            # What was cut may be the opening of a call, of which only the name can be known.
            return list(self._count(self._begun(""))) if self._required and held.strip() else self._text(held)
        calls = self._calls(held)
        if calls or self._required:
            return list(self._count(calls or self._begun(held)))
        return self._text(self._gap + self._style.opening + held if self._inside else held)

    def _tagged(self) -> Iterator[Part]:
        while True:
            if self._inside:
                body, closing, rest = self._held.partition(self._style.closing)
                if not closing:
                    return
                self._inside, self._held = False, rest
                calls = self._calls(body)
                yield from self._count(calls) if calls else self._text(self._gap + self._style.opening + body + closing)
                continue
            before, opening, rest = self._held.partition(self._style.opening)
            if opening:
                shown = before.rstrip()
                self._gap = before[len(shown) :]
                yield from self._text(shown)
                self._inside, self._held = True, rest
                continue
            keep = len(before) - len(before[: len(before) - self._tail(before)].rstrip())
            shown, self._held = before[: len(before) - keep], before[len(before) - keep :]
            yield from self._text(shown)
            return

    def _bare(self) -> Iterator[Part]:
        start = self._held.lstrip()
        if start and not start.startswith("{"):
            text, self._held = self._held, ""
            # From here on it is text: what begins in the middle of one is no call.
            self._style = _TEXT
            yield text

    def _tail(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins the opening tag."""
        tag = self._style.opening
        return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)

    def _text(self, text: str) -> list[Part]:
        text = "" if self._required else text.lstrip() if self._after_call else text
        self._after_call = self._after_call and not text
        return [text] if text else []

    def _count(self, calls: list[Call]) -> Iterator[Part]:
        self._after_call = True
        for call in calls:
            if self._several or not self.calls:
                self.calls += 1
                self.called = not call.cut
                yield call

    def _calls(self, text: str) -> list[Call]:
        """The calls that ``text`` consists of; none if anything in it is no call."""
        calls = []
        try:
            place = _space(text, 0)
            while place < len(text):
                fields, place = _fields(text, place)
                name, arguments = (fields.pop(key, ("", None)) for key in ("name", self._style.arguments))
                known = isinstance(name[1], str) and name[1] in self._names
                if fields or not known or not isinstance(arguments[1], dict):
                    return []
                custom = name[1] in self._custom
                if custom and not (arguments[1].keys() == {INPUT} and isinstance(arguments[1][INPUT], str)):
                    return []
                text_of_arguments = _whole_characters(arguments[0])
                # What is given out can be sent back: nothing deeper or greater than histories may hold.
                if not self._required:
                    strict_json(text_of_arguments)
                calls.append(Call(str(name[1]), text_of_arguments, custom=custom))
                place = _space(text, place)
                if text[place : place + 1] == ";" and not self._style.opening:
                    place = _space(text, place + 1)
        except (ValueError, RecursionError):  # no JSON, or nested deeper than anybody reads
            return []
        return calls

    def _begun(self, text: str) -> list[Call]:
        """The call that ``text`` is the beginning of, if it is known which; its arguments are as far as they came."""
        begun = re.match(r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"]*)(?P<end>"?)', text)
        name = begun["name"] if begun else ""
        meant = [
            known for known in self._names if known == name or (not (begun and begun["end"]) and known.startswith(name))
        ]
        if len(meant) != 1:
            return []
        rest = re.compile(rf'\s*,\s*"{self._style.arguments}"\s*:\s*').match(text, begun.end()) if begun else None
        arguments = "" if rest is None else text[rest.end() :]
        cut = True
        with contextlib.suppress(ValueError, RecursionError):  # cut within them
            arguments = arguments[: _DECODER.raw_decode(arguments)[1]]
            cut = False
        return [Call(meant[0], _whole_characters(arguments), cut, meant[0] in self._custom)]


# A tag that no text holds: everything is text.
_TEXT = ToolFormat("\x00\x00", "\x00\x00", "arguments", None)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
_ESCAPES = re.compile(
    r"(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


def _whole_characters(text: str) -> str:
    """JSON without halves of surrogate pairs, which are no characters: U+FFFD stands for each."""
    return _ESCAPES.sub(lambda found: "\\ufffd" if found["half"] else found[0], text)


def _space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _fields(text: str, place: int) -> tuple[dict[str, tuple[str, Any]], int]:
    """The object at ``place``, by key each value as text and as what it means, and where it ends.

    Raises:
        ValueError: there is no object, or it is broken.
    """
    if text[place : place + 1] != "{":
        raise ValueError("no object")
    fields: dict[str, tuple[str, Any]] = {}
    place = _space(text, place + 1)
    while True:
        key, place = _DECODER.raw_decode(text, place)
        place = _space(text, place)
        if not isinstance(key, str) or text[place : place + 1] != ":":
            raise ValueError("no key")
        start = _space(text, place + 1)
        value, place = _DECODER.raw_decode(text, start)
        fields[key] = (text[start:place], value)
        place = _space(text, place)
        if text[place : place + 1] == "}":
            return fields, place + 1
        if text[place : place + 1] != ",":
            raise ValueError("no end")
        place = _space(text, place + 1)
