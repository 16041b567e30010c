"""The two errors of the weights side: what a request got wrong, and what a family on disk got wrong."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Self

_LONGEST_NAME = 200
"""Characters of what was given that are compared with names."""


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` for the name that ``given`` is a slip of; empty where there is none."""
    others = [name for name in names if name != given]
    close = get_close_matches(given, others, n=1, cutoff=0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""


class CodedText(str):
    """A sentence for people with a code for programs: what decides by it reads the code, never the words.

    Attributes:
        code: a name in small letters, which stays when the words change.
    """

    code: str

    def __new__(cls, code: str, text: str) -> Self:
        made = super().__new__(cls, text)
        made.code = code
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.code, str(self)


def code_of(text: str | None) -> str | None:
    """The code of a text that has one."""
    return text.code if isinstance(text, CodedText) else None


class InputError(ValueError):
    """A request asked for something that is not allowed. Servers answer 400 with the message.

    Attributes:
        field: dotted path of the offending field, e.g. ``steering.preference.positive``.
        value: what was given.
        allowed: what would have been accepted, in words; of a choice the names, with commas between them. Empty where
            there is nothing to choose and ``reason`` says it all.
        reason: why not, where that is not plain from what is allowed.
    """

    def __init__(self, field: str, value: object, allowed: str = "", reason: str | None = None) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        self.reason = reason
        super().__init__(f"{field}: {self.complaint()}")

    def complaint(self, shown: Callable[[object], str] = repr) -> str:
        """The message without the field; ``shown`` writes the value."""
        if not self.allowed:
            return f"{self.reason} (got {shown(self.value)})"
        why = f": {self.reason}" if self.reason else self._slip()
        return f"{shown(self.value)} is not allowed{why}; allowed: {self.allowed}"

    def at(self, field: str) -> "InputError":
        """The same error about a field that the request calls ``field``."""
        return InputError(field, self.value, self.allowed, self.reason)

    def _slip(self) -> str:
        # A name is either the value or the last part of the field, such as an objective's.
        given = self.value if isinstance(self.value, str) else self.field.rpartition(".")[2]
        names = [name for name in self.allowed.partition(" (")[0].split(", ") if " " not in name]
        return did_you_mean(given[:_LONGEST_NAME], names) if given not in names else ""


class FamilyError(Exception):
    """A family on disk is broken: one message that names the file, the tensor (if any) and the reason."""

    def __init__(self, file: str | Path, reason: str, tensor: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.tensor = tensor
        where = f"{file}: tensor {tensor}" if tensor is not None else str(file)
        super().__init__(f"{where}: {reason}")
