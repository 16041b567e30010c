"""What all bodies of requests and their parts are."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Unread = Any
"""The type of a field that asks nothing about the answer, so that any value of it may be sent."""
UNREAD: Any = Field(None, description="not looked at: it asks nothing about the answer")


class StrictModel(BaseModel):
    """A body that refuses unknown fields, wrong types (no "1" for 1, no true for 1) and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
