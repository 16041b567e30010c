"""Answers that are kept for a while, so that others may go on from them: each caller's newest ones, in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

_OF_MESSAGE = 1000  # bytes that one takes beside its texts
_OF_CHARACTER = 4  # bytes at most


@dataclass(frozen=True)
class Kept:
    """An answer that later requests may refer to.

    Attributes:
        reply: what was sent.
        messages: the conversation with the answer at its end, without instructions.
        said: how many messages at the end are the answer's.
        size: bytes that it counts for.
    """

    reply: Mapping[str, Any]
    messages: tuple[Any, ...]
    said: int
    size: int

    @property
    def asked(self) -> tuple[Any, ...]:
        """The messages that were answered."""
        return self.messages[: len(self.messages) - self.said]

    @classmethod
    def of(cls, reply: Mapping[str, Any], asked: Sequence[Any], said: Sequence[Any]) -> Kept:
        """What is kept of the messages that were ``asked`` and those that were ``said``.

        Sizes count what is shared with other answers too, so that it never takes more than is counted.
        """
        messages = (*asked, *said)
        texts = sum(_OF_MESSAGE + _OF_CHARACTER * _characters(message) for message in messages)
        return cls(reply, messages, len(said), texts + _OF_MESSAGE + _OF_CHARACTER * len(json.dumps(reply)))


def _characters(message: Any) -> int:
    calls = sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
    return len(message.content or "") + len(message.reasoning_content or "") + calls


class ResponseStore:
    """The answers that are kept, by who asked for them. For the event loop's thread.

    Args:
        most: answers of one caller; 0 keeps none.
        largest: bytes of one caller's answers.
    """

    def __init__(self, most: int, largest: int) -> None:
        self._most = most
        self._largest = largest
        # A key that is taken out of the file takes its answers along.
        self._kept: WeakKeyDictionary[object, OrderedDict[str, Kept]] = WeakKeyDictionary()

    def put(self, caller: object, kept: Kept) -> None:
        """Keep an answer of ``caller``'s; the ones that were used least recently go."""
        if kept.size > self._largest or not self._most:
            return
        own = self._kept.setdefault(caller, OrderedDict())
        own[kept.reply["id"]] = kept
        total = sum(other.size for other in own.values())
        while len(own) > self._most or total > self._largest:
            total -= own.popitem(last=False)[1].size

    def get(self, caller: object, name: str) -> Kept | None:
        """The answer of ``caller``'s with the id ``name``; None where there is none."""
        own = self._kept.get(caller, OrderedDict())
        if name in own:
            own.move_to_end(name)
        return own.get(name)

    def items(self, caller: object, names: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """Those of the items ``names`` that an answer of ``caller``'s has, by id. All answers are gone through once,
        however many names there are."""
        kept = self._kept.get(caller, OrderedDict()).values() if names else ()
        return {item["id"]: item for answer in kept for item in answer.reply["output"] if item["id"] in names}

    def delete(self, caller: object, name: str) -> bool:
        """Forget an answer; whether there was one."""
        return self._kept.get(caller, OrderedDict()).pop(name, None) is not None
