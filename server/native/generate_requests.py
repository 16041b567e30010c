"""The bodies of the endpoints that are our own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import Messages
from ladle.server.fields.conversation import Question
from ladle.server.fields.sampling import SteeringField, TopLogprobs
from ladle.server.fields.schema_rules import only_with
from ladle.server.fields.token_ids import IDS, TokenIds, token_ids
from ladle.server.http.strict_model import StrictModel


def prompt_of(value: Any) -> str | TokenIds:
    """A text, or its token ids. Raises ValueError."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return token_ids(value)
    raise ValueError("allowed: a string or a list of token ids")


_PROMPT_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, IDS]}
PromptField = Annotated[str | TokenIds, PlainValidator(prompt_of), WithJsonSchema(_PROMPT_SCHEMA)]


def only_one_of(given: str) -> dict[str, Any]:
    """The schema of a body that has the one of prompt and messages that is ``given``."""
    other = "messages" if given == "prompt" else "prompt"
    return {"properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}, "required": [given]}


class GenerateRequest(Question):
    """``POST /v1/generate``: a prompt as it is, or messages through the base's chat template."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [only_with("top_logprobs", "logprobs")],
            "oneOf": [only_one_of("prompt"), only_one_of("messages")],
        }
    )

    prompt: PromptField | None = None
    messages: Messages | None = None
    logprobs: bool | None = Field(None, description="report the tokens with their logprobs even without a trace")
    top_logprobs: TopLogprobs | None = Field(None, description="alternatives to report for every token")

    @model_validator(mode="after")
    def _consistent(self) -> GenerateRequest:
        if (self.prompt is None) == (self.messages is None):
            given = "neither" if self.prompt is None else "both"
            raise InputError("prompt", given, "exactly one of prompt and messages")
        if self.messages is None and self.tools is not None:
            raise InputError(
                "tools",
                [tool.function.name for tool in self.tools],
                reason="it needs messages",
            )
        if self.messages is None and self.template_field is not None:
            raise InputError(
                self.template_field,
                getattr(self, self.template_field),
                reason="it needs messages",
            )
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs", self.top_logprobs, reason="it needs logprobs: true")
        return self

    @property
    def alternatives(self) -> int | None:
        """How many top alternatives to report; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wants_tokens(self) -> bool:
        """Whether choices list their tokens."""
        return bool(self.logprobs or (self.steering or {}).get("trace"))


class LiveSteeringRequest(StrictModel):
    """``POST /v1/generate/{id}/steering``: what changes."""

    steering: SteeringField = Field(description="keys that change; the others stay as they are for the answer")


class CoefficientsRequest(StrictModel):
    """``POST /v1/coefficients``: what a preference would become."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"steering": {"type": "null"}}},
                {"properties": {"method": {"type": "null"}, "preference": {"type": "null"}}},
            ]
        }
    )

    model: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    method: str | None = None
    preference: dict[str, float] | None = None
    steering: SteeringField | None = Field(
        None, description="in place of method and preference, where other options matter too"
    )

    @model_validator(mode="after")
    def _one_place(self) -> CoefficientsRequest:
        if self.steering is not None and (self.method is not None or self.preference is not None):
            reason = "method and preference stand inside it, not beside it"
            raise InputError("steering", self.steering, reason=reason)
        return self
