"""The bodies of ``POST /tokenize`` and ``POST /detokenize``, which are vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import ChatTemplateFields, Messages
from ladle.server.fields.known_fields import TOKENIZE, with_known
from ladle.server.fields.sampling import ModelField
from ladle.server.fields.token_ids import IDS, TokenIds, any_token_ids
from ladle.server.http.strict_model import StrictModel
from ladle.server.native.generate_requests import only_one_of
from ladle.server.tools.choices import Tools

_IDS: dict[str, Any] = {name: value for name, value in IDS.items() if name != "minItems"}
if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.fields.chat_messages import ChatTemplateFields as TokenizeBase
else:
    TokenizeBase = with_known(ChatTemplateFields, "TokenizeFields", TOKENIZE, ())


class TokenizeRequest(TokenizeBase):
    """A text as it is, or messages through the base's chat template."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [only_one_of("prompt"), only_one_of("messages")]})

    model: ModelField = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = Field(None, description="what the template shows with messages")
    add_special_tokens: bool | None = Field(
        None, description="whether the tokenizer puts in front what begins a text; default true, false for messages"
    )
    return_token_strs: bool | None = Field(None, description="list the tokens as strings too")

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            given = "neither" if self.prompt is None else "both"
            raise InputError("prompt", given, "exactly one of prompt and messages")
        if self.messages is not None and self.add_special_tokens:
            raise InputError("add_special_tokens", True, reason="the chat template puts its own around messages")
        if self.messages is None:
            field = "tools" if self.tools is not None else self.template_field
            if field is not None:
                raise InputError(field, getattr(self, field), reason="it needs messages")
        return self


class DetokenizeRequest(StrictModel):
    """Token ids whose text is asked for."""

    model: ModelField = None
    tokens: Annotated[TokenIds, PlainValidator(any_token_ids), WithJsonSchema(_IDS)]
    skip_special_tokens: bool | None = Field(None, description="default false, which shows them by their names")
