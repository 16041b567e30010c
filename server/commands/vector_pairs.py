"""Texts in pairs, from which ``ladle vector`` makes a steering vector: as they are given, and as token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.guidance.diagnostics.probe_prompts import render
from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import InputError

_KEYS = ("prompt", "system", "positive", "negative")
MOST = 4096


@dataclass(frozen=True)
class Side:
    """One text of a pair.

    Attributes:
        text: empty where the prompt itself is what is read.
        prompt: what it answers; None where it stands alone.
        system: the system message in front of the prompt.
    """

    text: str
    prompt: str | None = None
    system: str | None = None

    def ids(self, tokenizer: Any) -> tuple[list[int], int]:
        """(token ids, where the part begins that tells the sides apart): the text, or all of a prompt without one.

        Raises:
            InputError: the chat template refuses the prompt, or nothing is left of it.
        """
        if self.prompt is None:
            return list(tokenizer(self.text)["input_ids"]), 0
        view = None if self.system is None else PromptView("system", self.system)
        (before,) = render(tokenizer, [self.prompt], view)
        own = list(tokenizer(self.text, add_special_tokens=False)["input_ids"]) if self.text else []
        # Of a prompt alone the last token is all that has read everything.
        return [*before, *own], len(before) if own else len(before) - 1


Pair = tuple[Side, Side]


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a JSONL file: objects with the texts ``positive`` and ``negative``; with a ``prompt`` these are
    answers to it, which a ``system`` message may stand in front of.

    Raises:
        InputError: naming the line: no such object, an empty text, no line at all or too many.
        OSError: the file cannot be read.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError("pairs", str(file), f"a text in UTF-8 ({error.reason} at byte {error.start})") from None
    if not 1 <= len(lines) <= MOST:
        raise InputError("pairs", f"{len(lines)} lines in {file}", f"1 to {MOST} pairs")
    return [_pair(line, f"pairs:{number}") for number, line in enumerate(lines, start=1)]


def pairs_of(positive: str, negative: str, prompts: Sequence[str]) -> list[Pair]:
    """A pair of each of ``prompts``, under either text as its system message; without prompts the texts themselves.

    Raises:
        InputError: an empty text, or twice the same.
    """
    for name, text in (("positive", positive), ("negative", negative)):
        if not text.strip():
            raise InputError(name, text, "a text")
    if positive == negative:
        raise InputError("negative", negative, "another text than positive")
    if not prompts:
        return [(Side(positive), Side(negative))]
    return [(Side("", prompt, positive), Side("", prompt, negative)) for prompt in prompts]


def _pair(line: str, field: str) -> Pair:
    allowed = "an object with the texts positive and negative, and with prompt and system where there are such"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not {"positive", "negative"} <= row.keys():
        raise InputError(field, line[:80], allowed)
    for key, text in row.items():
        if key not in _KEYS:
            raise InputError(f"{field}.{key}", text, f"the keys {', '.join(_KEYS)}")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{field}.{key}", text, "a text that is not empty")
    if "system" in row and "prompt" not in row:
        raise InputError(f"{field}.system", row["system"], reason="there is no prompt that it would stand in front of")
    return tuple(Side(row[key], row.get("prompt"), row.get("system")) for key in ("positive", "negative"))  # type: ignore[return-value]
