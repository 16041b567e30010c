"""Where the server is, and what every client is asked for."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

URL, KEY = os.environ["LADLE_URL"], os.environ["LADLE_KEY"]
V1 = f"{URL}/v1"
STEERING = {"steering": {"preference": {"concise": 1}}}
NAMED = "demo/bone_soup@positive=1"
SAYING: list[dict] = [{"role": "user", "content": "Will it rain?"}]


class Forecast(BaseModel):
    """The form of an answer that a model of random weights comes to the end of."""

    model_config = ConfigDict(extra="forbid")

    town: Literal["Ur", "Bath"]
    days: int = Field(ge=1, le=9)
