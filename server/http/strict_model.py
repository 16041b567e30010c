"""What all bodies of requests and their parts are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from ladle.nulls import UNSET

_MOST_STRANGERS = 11  # one more than an error names, so that it can say that there are more
Unread = Any
"""The type of a field that asks nothing about the answer, so that any value of it may be sent."""
UNREAD: Any = Field(None, description="not looked at: it asks nothing about the answer")


@dataclass(frozen=True)
class Stranger:
    """What a field that nobody knows holds while it is refused: the names of the fields that its model has."""

    known: frozenset[str]


class StrictModel(BaseModel):
    """A body that refuses unknown fields, wrong types (no "1" for 1, no true for 1) and numbers that are not finite.

    An unknown field whose value is null passes: null says that nothing was given, so it asks nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_strangers(cls, value: Any) -> Any:
        """Drop unknown fields that are unset, and keep only the first of many others: thousands need not be reported
        one by one."""
        known = _names(cls)
        if not isinstance(value, dict) or value.keys() <= known or cls.model_config["extra"] != "forbid":
            return value
        strangers = (key for key, item in value.items() if item is not None and key not in known)
        given = {key: item for key, item in value.items() if key in known}
        return given | dict.fromkeys(islice(strangers, _MOST_STRANGERS), Stranger(known))

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        described = handler.resolve_ref_schema(schema)
        if described.get("additionalProperties") is False:
            described["additionalProperties"] = UNSET
        return schema


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """What the fields of ``model`` are called in a body."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
