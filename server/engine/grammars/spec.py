"""What a grammar is before it is compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ladle.merging.errors import CodedText


class GrammarError(ValueError):
    """A grammar that cannot be followed; the message is the reason.

    Attributes:
        complex: whether it is too large or takes too long, rather than wrong.
    """

    def __init__(self, message: str, complex: bool = False) -> None:
        super().__init__(message)
        self.complex = complex

    @classmethod
    def of_library(cls, message: str) -> GrammarError:
        """What llguidance says, which has words for what it finds and no codes."""
        return cls(message, any(word in message for word in _TOO_MUCH))


def too_complex(reason: str) -> CodedText:
    """Why a grammar cannot be followed, or not any further, that is too much for this server."""
    return CodedText("grammar_too_complex", f"the grammar is too complex: {reason}")


# What llguidance says of grammars that are beyond its limits.
_TOO_MUCH = ("too large", "too many", "too big", "too complex", "limit", "fuel", "exceed")


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar as text, which is its identity.

    Attributes:
        kind: a JSON schema, a regular expression (Rust's syntax, matching the whole answer) or a grammar in
            llguidance's Lark.
        text: of that kind.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> GrammarSpec:
        """The grammar of a schema that is a JSON object; its properties are written in the order of the schema."""
        return cls("json_schema", json.dumps(schema))
