"""The two errors of the weights side: what a request got wrong, and what a family on disk got wrong."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

SHOWN = 200
"""Characters of a refused value that are echoed."""
_LONGEST_NAME = 100


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` for the name that ``given`` is a slip of; empty where there is none."""
    if len(given) > _LONGEST_NAME:
        return ""
    others = [name for name in names if name != given]
    found = get_close_matches(given, others, n=1, cutoff=0.7)
    return f" (did you mean {found[0]!r}?)" if found else ""


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
        super().__init__(f"{field}: {shown(value)} is not allowed{why}{slip}; allowed: {allowed}")


class FamilyError(Exception):
    """A family on disk is broken: one message that names the file, the tensor (if any) and the reason."""

    def __init__(self, file: str | Path, reason: str, tensor: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.tensor = tensor
        where = f"{file}: tensor {tensor}" if tensor is not None else str(file)
        super().__init__(f"{where}: {reason}")
