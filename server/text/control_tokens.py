"""Names of special tokens in the texts of a chat, which must not become these tokens: who writes ``<|im_end|>`` into a
message would otherwise end it, and could open a turn of the system.

A chat template cannot tell texts from what it puts around them, and its result is one string. So before rendering a
mark, a character that nobody else uses, goes into every such name within a text: no name is left that the tokenizer
could take for a token. The whole string is encoded at once, because what a tokenizer makes of a piece depends on what
stands before it, and the tokens of the marks are taken out afterwards. Where no text holds such a name, nothing of this
happens and the tokens are those of the template as it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from ladle.merging.exceptions import InputError

logger = logging.getLogger(__name__)

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps for use within a program, and never for text."""


class ControlTokens:
    """The tokens of one tokenizer that texts may not hold: the special ones and, but for what the assistant said
    itself, other added ones that its chat template writes, such as those around calls and thoughts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        template = tokenizer.chat_template or ""
        source = template if isinstance(template, str) else "".join(template.values())
        added = self._backend.get_added_tokens_decoder()
        # A name of one character has no inside that a mark could be put into.
        names = {index: token for index, token in added.items() if len(token.content.strip()) > 1}
        special = {index: token.content for index, token in names.items() if token.special}
        written = {index: token.content for index, token in names.items() if token.content in source}
        # What stands for text that has no token is no sign that a name became one.
        self._ids = (frozenset(special) | frozenset(written)) - {tokenizer.unk_token_id}
        self._special = _pattern(special.values())
        self._any = _pattern([*special.values(), *written.values()])
        self.kept_apart = all(map(self._stays_text, dict.fromkeys([*special.values(), *written.values()])))
        """Whether names in texts stay text: the tokenizer takes marked names apart, and leaves all else as it is."""
        if not self.kept_apart:
            logger.warning("this tokenizer reads the names of special tokens in texts as these tokens")

    def mark(self, turns: list[dict[str, Any]], others: Any) -> tuple[list[dict[str, Any]], Any, str | None]:
        """The messages ``turns`` and ``others`` (any JSON that a template is given) with marks in the names that their
        texts hold, and the mark; no mark where there are none.

        Raises:
            InputError: field ``messages``: the texts use up all marks.
        """
        patterns = [self._special if turn["role"] == "assistant" else self._any for turn in turns]
        held = any(_occurs(turn, pattern) for turn, pattern in zip(turns, patterns, strict=True))
        if not self.kept_apart or not (held or _occurs(others, self._any)):
            return turns, others, None
        mark = next((mark for mark in _MARKS if not _contains([turns, others], mark)), None)
        if mark is None:
            raise InputError("messages", "texts", "texts without the noncharacters U+FDD0 to U+FDEF")
        marked = [_marked(turn, pattern, mark) for turn, pattern in zip(turns, patterns, strict=True)]
        return marked, _marked(others, self._any, mark), mark

    def encode(self, text: str, mark: str) -> tuple[int, ...]:
        """Token ids of a rendered ``text``, without those of its marks.

        Raises:
            ValueError: the tokenizer does not keep a mark apart from what stands beside it.
        """
        # With offsets, which the faster call leaves out.
        encoding = self._backend.encode_batch([text], add_special_tokens=False)[0]
        ids = []
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            piece = text[start:stop]
            if mark not in piece:
                ids.append(token)
            elif piece.strip(mark):
                raise ValueError("a token covers a mark and text")
        return tuple(ids)

    def _stays_text(self, name: str) -> bool:
        mark = _MARKS[0]
        try:
            ids = self.encode(f"a {_take_apart(name, self._any, mark)} b", mark)
        except ValueError:
            return False
        plain = self._backend.decode(list(ids), skip_special_tokens=True)
        return not self._ids & set(ids) and name in plain and mark not in plain


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    # The longest first: a name may begin like another. Without names nothing matches.
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _occurs(value: Any, pattern: re.Pattern[str]) -> bool:
    if isinstance(value, str):
        return pattern.search(value) is not None
    if isinstance(value, dict):
        return any(_occurs(key, pattern) or _occurs(item, pattern) for key, item in value.items())
    return any(_occurs(item, pattern) for item in value) if isinstance(value, list) else False


def _marked(value: Any, pattern: re.Pattern[str], mark: str) -> Any:
    if isinstance(value, str):
        return _take_apart(value, pattern, mark)
    if isinstance(value, dict):
        return {_marked(key, pattern, mark): _marked(item, pattern, mark) for key, item in value.items()}
    return [_marked(item, pattern, mark) for item in value] if isinstance(value, list) else value


def _take_apart(text: str, pattern: re.Pattern[str], mark: str) -> str:
    """``text`` with a mark behind the first character of every name; names may overlap."""
    parts, place = [], 0
    while (match := pattern.search(text, place)) is not None:
        parts += [text[place : match.start() + 1], mark]
        place = match.start() + 1
    return "".join([*parts, text[place:]])


def _contains(value: Any, mark: str) -> bool:
    if isinstance(value, str):
        return mark in value
    if isinstance(value, dict):
        return any(mark in key or _contains(item, mark) for key, item in value.items())
    return any(_contains(item, mark) for item in value) if isinstance(value, list) else False
