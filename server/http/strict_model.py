"""What all bodies of requests and their parts are."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MOST_STRANGERS = 11  # one more than an error names, so that it can say that there are more
Unread = Any
"""The type of a field that asks nothing about the answer, so that any value of it may be sent."""
UNREAD: Any = Field(None, description="not looked at: it asks nothing about the answer")


class StrictModel(BaseModel):
    """A body that refuses unknown fields, wrong types (no "1" for 1, no true for 1) and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_strangers(cls, value: Any) -> Any:
        """Keep only the first of many unknown fields: thousands need not be reported one by one."""
        if not isinstance(value, dict) or len(value) <= _MOST_STRANGERS:
            return value
        known = _names(cls)
        strangers = [key for key in value if key not in known]
        if len(strangers) <= _MOST_STRANGERS:
            return value
        dropped = set(strangers[_MOST_STRANGERS:])
        return {key: item for key, item in value.items() if key not in dropped}


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """What the fields of ``model`` are called in a body."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
