"""The two errors of the weights side: what a request got wrong, and what a family on disk got wrong."""

from pathlib import Path


class InputError(ValueError):
    """A request asked for something that is not allowed. Servers answer 400 with the message.

    Attributes:
        field: dotted path of the offending field, e.g. ``steering.preference.positive``.
        value: what was given.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {value!r} is not allowed; allowed: {allowed}")


class FamilyError(Exception):
    """A family on disk is broken: one message that names the file, the tensor (if any) and the reason."""

    def __init__(self, file: str | Path, reason: str, tensor: str | None = None) -> None:
        self.file = str(file)
        self.reason = reason
        self.tensor = tensor
        where = f"{file}: tensor {tensor}" if tensor is not None else str(file)
        super().__init__(f"{where}: {reason}")
