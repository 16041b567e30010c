"""The two errors of the weights side: what a request got wrong, and what a family on disk got wrong."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` for the name that ``given`` is a slip of; empty where there is none."""
    others = [name for name in names if name != given]
    found = get_close_matches(given, others, n=1, cutoff=0.7)
    return f" (did you mean {found[0]!r}?)" if found else ""


class InputError(ValueError):
    """A request asked for something that is not allowed. Servers answer 400 with the message.

    Attributes:
        field: dotted path of the offending field, e.g. ``steering.preference.positive``.
        value: what was given.
        allowed: what would have been accepted, in words; of a choice the names, with commas between them.
        reason: why not, where that is not plain from what is allowed.
    """

    def __init__(self, field: str, value: object, allowed: str, reason: str | None = None) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        self.reason = reason
        why = f": {reason}" if reason else ""
        # A name is either the value or the last part of the field, such as an objective's.
        given = value if isinstance(value, str) else field.rpartition(".")[2]
        names = [name for name in allowed.partition(" (")[0].split(", ") if " " not in name]
        slip = did_you_mean(given, names) if not reason and given not in names else ""
        super().__init__(f"{field}: {value!r} is not allowed{why}{slip}; allowed: {allowed}")


class FamilyError(Exception):
    """A family on disk is broken: one message that names the file, the tensor (if any) and the reason."""

    def __init__(self, file: str | Path, reason: str, tensor: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.tensor = tensor
        where = f"{file}: tensor {tensor}" if tensor is not None else str(file)
        super().__init__(f"{where}: {reason}")
