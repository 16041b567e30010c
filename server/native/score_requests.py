"""The body of ``POST /v1/score``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.option_kinds import OptionError
from ladle.server.fields.chat_messages import ChatTemplateFields, Messages
from ladle.server.fields.sampling import MAX_CHOICES, CacheSalt, ModelField, SteeringField
from ladle.server.fields.token_ids import IDS, TokenIds
from ladle.server.native.generate_requests import PromptField, only_one_of, prompt_of
from ladle.server.tools.choices import Tools
from ladle.steering_options import RANKINGS


def _texts(value: Any) -> tuple[str | TokenIds, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
        raise ValueError(f"allowed: a list of 1 to {MAX_CHOICES} texts, each a string or a list of token ids")
    return tuple(map(prompt_of, value))


_BY = replace(RANKINGS, keys={key: kind for key, kind in RANKINGS.keys.items() if key != "vote"})


def _by(value: Any) -> str | Mapping[str, str]:
    try:
        return _BY.parse(value)
    except OptionError as error:
        raise ValueError(f"allowed: {error.allowed}; texts do not vote, whoever sends them can count") from None


_TEXTS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [{"type": "string"}, IDS]},
    "minItems": 1,
    "maxItems": MAX_CHOICES,
}


class ScoreRequest(ChatTemplateFields):
    """Texts that are answers to a prompt as it is, or to messages through the base's chat template."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [only_one_of("prompt"), only_one_of("messages")]})

    model: ModelField = None
    prompt: PromptField | None = None
    messages: Messages | None = None
    tools: Tools | None = Field(None, description="what the template shows with messages")
    texts: Annotated[tuple[str | TokenIds, ...], PlainValidator(_texts), WithJsonSchema(_TEXTS_SCHEMA)]
    by: Annotated[str | Mapping[str, str], PlainValidator(_by), WithJsonSchema(_BY.schema())]
    per: Literal["answer", "token"] | None = Field(None, description="default answer; token divides by the tokens")
    end: bool | None = Field(None, description="count the token that ends an answer as the last one of every text")
    steering: SteeringField | None = None
    cache_salt: CacheSalt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ScoreRequest:
        if (self.prompt is None) == (self.messages is None):
            given = "neither" if self.prompt is None else "both"
            raise InputError("prompt", given, "exactly one of prompt and messages")
        if self.messages is None:
            field = "tools" if self.tools is not None else self.template_field
            if field is not None:
                raise InputError(field, getattr(self, field), reason="it needs messages")
        steering = self.steering or {}
        if steering.get("rank") is not None:
            raise InputError("steering.rank", steering["rank"], reason="by and per stand beside steering here")
        if steering.get("monitor") is not None:
            reason = "nothing is written that it could end; by: explicit says what a value thinks of a text"
            raise InputError("steering.monitor", steering["monitor"], reason=reason)
        if steering.get("trace"):
            raise InputError("steering.trace", True, reason="nothing is generated that could be traced")
        return self

    @property
    def ranked(self) -> dict[str, Any]:
        """``steering`` with what the texts are judged by."""
        return {**(self.steering or {}), "rank": {"by": self.by, "per": self.per}}
