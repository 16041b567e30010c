"""What all bodies of requests and their parts are."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """A body that refuses unknown fields, wrong types (no "1" for 1, no true for 1) and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
