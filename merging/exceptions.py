"""The two errors of the weights side: what a request got wrong, and what a family on disk got wrong."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Self

SHOWN = 200
"""Characters of a refused value that are echoed."""
_LONGEST_NAME = 100
"""Characters of what was given that is compared with names; nothing longer is a slip of one."""


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` for the name that ``given`` is a slip of; empty where there is none."""
    if len(given) > _LONGEST_NAME:
        return ""
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
        error = super().__new__(cls, text)
        error.code = code
        return error

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        return self.code, str(self)


def code_of(text: str | None) -> str | None:
    """The code of a text that has one."""
    return text.code if isinstance(text, CodedText) else None


def shown(value: object) -> str:
    """A refused value as it is echoed: its repr, cut. No more of it is written than is shown, however large it is."""
    try:
        text = repr(_beginning(value, [SHOWN]))
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _beginning(value: object, left: list[int]) -> object:
    """``value`` with at most ``left`` parts, and strings of as many characters: enough for what is shown of it."""
    left[0] -= 1
    if isinstance(value, str):
        return value[: SHOWN + 1]
    if isinstance(value, dict):
        parts: dict[object, object] = {}
        for key, item in value.items():
            if left[0] < 0:
                break
            parts[_beginning(key, left)] = _beginning(item, left)
        return parts
    if isinstance(value, (list, tuple)):
        some: list[object] = []
        for item in value:
            if left[0] < 0:
                break
            some.append(_beginning(item, left))
        return some if isinstance(value, list) else tuple(some)
    return value


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

    def complaint(self) -> str:
        """The message without the field."""
        if not self.allowed:
            return f"{self.reason} (got {shown(self.value)})"
        why = f": {self.reason}" if self.reason else self._slip()
        return f"{shown(self.value)} is not allowed{why}; allowed: {self.allowed}"

    def at(self, field: str) -> "InputError":
        """This error, about a field that the request calls ``field``."""
        return InputError(field, self.value, self.allowed, self.reason)

    def _slip(self) -> str:
        # A name is either the value or the last part of the field, such as an objective's.
        given = self.value if isinstance(self.value, str) else self.field.rpartition(".")[2]
        names = [name for name in self.allowed.partition(" (")[0].split(", ") if " " not in name]
        return did_you_mean(given, names) if given not in names else ""


class FamilyError(Exception):
    """A family on disk is broken: one message that names the file, the tensor (if any) and the reason."""

    def __init__(self, file: str | Path, reason: str, tensor: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.tensor = tensor
        where = f"{file}: tensor {tensor}" if tensor is not None else str(file)
        super().__init__(f"{where}: {reason}")
