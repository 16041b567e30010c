"""What the value of an option may be: each kind with its check, what it allows in words, and its JSON schema."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ladle.nulls import UNSET, nullable, without_unset


class OptionError(ValueError):
    """A value that an option does not take.

    Attributes:
        path: keys below the option, with dots between them; empty for the option's own value.
        value: what was given there.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, path: str, value: object, allowed: str) -> None:
        self.path = path
        self.value = value
        self.allowed = allowed
        super().__init__(f"{path or 'value'}: {value!r} is not allowed; allowed: {allowed}")


class Kind(ABC):
    """What a value may be."""

    @property
    @abstractmethod
    def type(self) -> Any:
        """The Python type of a value as a file states it; ``float`` stands for a finite number."""

    @property
    @abstractmethod
    def allowed(self) -> str:
        """What is accepted, in words; of a choice the names, with commas between them."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is one, its parts left aside."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """A JSON schema that accepts what ``parse`` accepts."""

    def parse(self, value: Any) -> Any:
        """``value`` as methods read it: numbers as float, objects with their defaults. Raises OptionError."""
        if not self.accepts(value):
            raise OptionError("", value, self.allowed)
        return value


@dataclass(frozen=True)
class Text(Kind):
    """A string; ``words`` say what of."""

    words: str = "a text"
    type = str

    @property
    def allowed(self) -> str:
        return self.words

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class OneOf(Kind):
    """One of some names."""

    names: tuple[str, ...]
    type = str

    @property
    def allowed(self) -> str:
        return ", ".join(self.names)

    def accepts(self, value: Any) -> bool:
        return value in self.names

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.names)}


@dataclass(frozen=True)
class ChoiceOrText(Kind):
    """One of some names, or an object with one of ``keys`` and a text."""

    names: tuple[str, ...]
    keys: Mapping[str, Text]
    type = str | dict[str, str]

    @property
    def allowed(self) -> str:
        objects = (f'{{"{key}": {kind.words}}}' for key, kind in self.keys.items())
        return ", ".join((*self.names, *objects))

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) or value in self.names

    def parse(self, value: Any) -> str | dict[str, str]:
        if not isinstance(value, Mapping):
            return str(super().parse(value))
        given = without_unset(value, self.keys)
        if len(given) != 1 or next(iter(given)) not in self.keys:
            raise OptionError("", dict(value), self.allowed)
        ((key, text),) = given.items()
        if not self.keys[key].accepts(text):
            raise OptionError(key, text, self.keys[key].allowed)
        return {key: text}

    def schema(self) -> dict[str, Any]:
        objects = [
            {"type": "object", "additionalProperties": UNSET, "required": [key], "properties": {key: kind.schema()}}
            for key, kind in self.keys.items()
        ]
        return {"anyOf": [{"enum": list(self.names)}, *objects]}


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    type = bool
    allowed = "true or false"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Number(Kind):
    """A finite number.

    Attributes:
        least, most: its bounds, both included.
        open: ``least`` itself is excluded.
        unit: what it counts; empty for a plain number.
    """

    least: float
    most: float
    open: bool = False
    unit: str = ""
    type = float

    @property
    def allowed(self) -> str:
        of = f" of {self.unit}" if self.unit else ""
        if self.open:
            return f"a number{of} above {self.least:g} and at most {self.most:g}"
        return f"a number{of} from {self.least:g} to {self.most:g}"

    def accepts(self, value: Any) -> bool:
        return is_number(value) and self.least <= value <= self.most and not (self.open and value == self.least)

    def parse(self, value: Any) -> float:
        return float(super().parse(value))

    def schema(self) -> dict[str, Any]:
        lower = "exclusiveMinimum" if self.open else "minimum"
        return {"type": "number", lower: self.least, "maximum": self.most}


@dataclass(frozen=True)
class Count(Kind):
    """A whole number from 1 to ``most``; without one, to what ``words`` say, which is checked elsewhere."""

    most: int | None = None
    words: str = ""
    type = int

    @property
    def allowed(self) -> str:
        return f"a whole number from 1 to {self.words if self.most is None else self.most}"

    def accepts(self, value: Any) -> bool:
        most = math.inf if self.most is None else self.most
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": 1} | ({} if self.most is None else {"maximum": self.most})


@dataclass(frozen=True)
class Weights(Kind):
    """Numbers by name, which are judged against the family: ``words`` say what they are.

    Attributes:
        least, most: bounds of a number, for the schema alone.
        example: as JSON.
    """

    words: str
    least: float | None = None
    most: float | None = None
    example: str = '{"name": 1}'
    type = dict[str, float]

    @property
    def allowed(self) -> str:
        return self.words

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.least, "maximum": self.most}
        number = {"type": "number", **{key: bound for key, bound in bounds.items() if bound is not None}}
        return {"type": "object", "additionalProperties": number}


@dataclass(frozen=True)
class NumberOrEach(Kind):
    """A number, or an object with a number for some of ``keys``."""

    number: Number
    keys: tuple[str, ...]
    type = float | dict[str, float]

    @property
    def allowed(self) -> str:
        return f"{self.number.allowed}, or an object with such numbers for {' or '.join(self.keys)}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) or self.number.accepts(value)

    def parse(self, value: Any) -> float | dict[str, float]:
        if not isinstance(value, Mapping):
            return float(super().parse(value))
        given = without_unset(value, self.keys)
        if not given:
            raise OptionError("", dict(value), self.allowed)
        for key, entry in given.items():
            if key not in self.keys:
                raise OptionError(str(key), entry, f"the keys {', '.join(self.keys)}")
            if not self.number.accepts(entry):
                raise OptionError(str(key), entry, self.number.allowed)
        return {key: float(entry) for key, entry in given.items()}

    def schema(self) -> dict[str, Any]:
        properties = {key: self.number.schema() for key in self.keys}
        one = {"anyOf": [{"required": [key]} for key in self.keys]}
        each = {"type": "object", "properties": properties, "additionalProperties": UNSET, **one}
        return {"anyOf": [self.number.schema(), each]}


@dataclass(frozen=True)
class Objects(Kind):
    """A list of objects, which are judged elsewhere.

    Attributes:
        most: how many there may be, and then one at least; None for any number.
        words: what one of them is called.
        example: as JSON.
    """

    words: str
    most: int | None = None
    example: str = "[{}]"
    type = list[dict[str, Any]]

    @property
    def allowed(self) -> str:
        return f"a list of {self.words}" if self.most is None else f"a list of 1 to {self.most} {self.words}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and (self.most is None or 1 <= len(value) <= self.most)

    def schema(self) -> dict[str, Any]:
        bounds = {} if self.most is None else {"minItems": 1, "maxItems": self.most}
        return {"type": "array", "items": {"type": "object"}, **bounds}


@dataclass(frozen=True)
class Record(Kind):
    """An object with these keys.

    Attributes:
        kinds: of the values, by key.
        defaults: of keys that may be left out; the others are required. A default of None says that nothing was given.
        example: as JSON.
        one_of: of these keys, which may be left out, exactly one is given.
    """

    kinds: Mapping[str, Kind]
    defaults: Mapping[str, Any]
    example: str
    one_of: tuple[str, ...] = ()
    type = dict[str, Any]

    @property
    def allowed(self) -> str:
        return f"an object such as {self.example}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)

    def parse(self, value: Any) -> dict[str, Any]:
        raw = super().parse(value)
        given = without_unset(raw)
        for key in given:
            if key not in self.kinds:
                raise OptionError(str(key), raw[key], f"the keys {', '.join(self.kinds)}")
        parsed: dict[str, Any] = {}
        for key, kind in self.kinds.items():
            entry = given.get(key, self.defaults.get(key))
            if entry is None and key in self.defaults:
                parsed[key] = None
                continue
            if not kind.accepts(entry):
                raise OptionError(key, entry, kind.allowed)
            try:
                parsed[key] = kind.parse(entry)
            except OptionError as error:
                path = ".".join(filter(None, (key, error.path)))
                raise OptionError(path, error.value, error.allowed) from None
        if self.one_of and sum(key in given for key in self.one_of) != 1:
            raise OptionError("", dict(raw), f"an object with one of {', '.join(self.one_of)}, such as {self.example}")
        return parsed

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": UNSET,
            "required": [key for key in self.kinds if key not in self.defaults],
            "properties": {
                key: nullable(kind.schema()) if key in self.defaults else kind.schema()
                for key, kind in self.kinds.items()
            },
            **({"oneOf": [self._given(key) for key in self.one_of]} if self.one_of else {}),
        }

    def _given(self, key: str) -> dict[str, Any]:
        """A JSON schema of objects in which ``key`` is given."""
        return {"required": [key], "properties": {key: self.kinds[key].schema()}}


@dataclass(frozen=True)
class Interval(Kind):
    """Two numbers, the second one greater than the first."""

    number: Number
    type = list[float]

    @property
    def allowed(self) -> str:
        return f"two numbers, the second one greater, each {self.number.allowed}"

    def accepts(self, value: Any) -> bool:
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        return pair and all(self.number.accepts(end) for end in value) and value[0] < value[1]

    def parse(self, value: Any) -> list[float]:
        return [float(end) for end in super().parse(value)]

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.number.schema(), "minItems": 2, "maxItems": 2}


@dataclass(frozen=True)
class Either(Kind):
    """A value of one of some kinds, of which no value has two."""

    kinds: tuple[Kind, ...]
    type = Any

    @property
    def allowed(self) -> str:
        return ", or ".join(kind.allowed for kind in self.kinds)

    def accepts(self, value: Any) -> bool:
        return any(kind.accepts(value) for kind in self.kinds)

    def parse(self, value: Any) -> Any:
        kind = next((kind for kind in self.kinds if kind.accepts(value)), None)
        if kind is None:
            raise OptionError("", value, self.allowed)
        return kind.parse(value)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [kind.schema() for kind in self.kinds]}


def is_number(value: Any) -> bool:
    """Whether it is a JSON number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
