"""The request fields that say how an answer thinks before it is given, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladle.merging.errors import InputError
from ladle.server.engine.requests.thinking import Thinking
from ladle.server.http.strict_model import StrictModel
from ladle.server.serving import Serving
from ladle.server.text.thinking_tags import ThinkingTags

_MAX_MESSAGE = 2000  # characters

Budget = Annotated[int, Field(ge=0, le=1 << 31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ThinkingOptions(StrictModel):
    """``thinking``: the thought in front of the answer is told apart and, with a budget, ended. Other servers' clients
    say by a type whether there is one at all."""

    type: Literal["enabled", "disabled", "adaptive"] | None = Field(
        None, description="disabled: no thought; adaptive: told apart where the family thinks; default: enabled"
    )
    budget: Budget | None = Field(None, description="most tokens of the thought; default: any number")
    message: Annotated[str, Field(max_length=_MAX_MESSAGE)] | None = Field(
        None, description="what comes in front of the closing tag where the budget is used up"
    )

    @model_validator(mode="after")
    def _message_at_the_end(self) -> ThinkingOptions:
        if self.message is not None and self.budget is None:
            raise InputError("thinking.message", self.message, reason="it needs a budget, at whose end it comes")
        if self.type == "disabled" and self.budget:
            raise InputError("thinking.budget", self.budget, "0, or left out, with type disabled")
        return self


class ThinkingFields(StrictModel):
    """What endpoints with messages say of thoughts."""

    thinking: ThinkingOptions | None = Field(
        None, description="tell the thought in front of the answer apart, and keep it short; extension"
    )
    reasoning_effort: Effort | None = Field(None, description="a budget for the thought that the family has a name for")


def thinking_of(serving: Serving, body: ThinkingFields, prompt: Sequence[int], thought: bool) -> Thinking | None:
    """How the answer to ``prompt`` thinks; None where nothing is asked about that. ``thought``: whether the prompt may
    hold a part of the thought.

    Raises:
        InputError: the family has no tags around thoughts, or no budget of that name; a message that holds a tag.
    """
    tags, options, effort = serving.thinking, body.thinking, body.reasoning_effort
    if options is not None and options.type == "disabled" and effort in (None, "none"):
        options, effort = None, "none"
    if options is not None and tags is None and options.type == "adaptive":
        return None
    if options is None and (effort is None or (effort == "none" and tags is None)):
        return None
    field, value = ("reasoning_effort", effort) if options is None else ("thinking", options.model_dump())
    if tags is None:
        reason = (
            f"family {serving.family.name} has no tags around thoughts: its chat template does not name <think> and "
            "</think>, and its family.toml has no [thinking] with open and close"
        )
        raise InputError(field, value, reason=reason)
    if options is not None and effort is not None:
        raise InputError("reasoning_effort", effort, reason="thinking says the budget; give one of the two")
    budget, message = (None, "") if options is None else (options.budget, options.message or "")
    if effort is not None:
        budgets = {"none": 0, **tags.budgets}
        if effort not in budgets:
            raise InputError("reasoning_effort", effort, f"{', '.join(budgets)}, or budgets.{effort} in [thinking]")
        budget = budgets[effort]
    said = _message_ids(serving, tags, message)
    return Thinking(tags.open_ids, tags.close_ids, budget, said, tags.opened(prompt, thought))


def _message_ids(serving: Serving, tags: ThinkingTags, message: str) -> tuple[int, ...]:
    """The tokens of a text between the tags: the names of special tokens in it stay text. Raises InputError."""
    if not message:
        return ()
    if tags.open in message or tags.close in message:
        raise InputError(
            "thinking.message", message, f"a text without {tags.open} and {tags.close}, which stand around it"
        )
    (turn,), _, mark = serving.control_tokens.mark([{"role": "user", "content": message}], [])
    try:
        if mark is not None:
            ids = serving.control_tokens.encode(turn["content"], mark)
        else:
            ids = tuple(serving.engine.tokenizer.backend_tokenizer.encode(message, add_special_tokens=False).ids)
    except ValueError:
        raise InputError("thinking.message", message, "a text in which no names of special tokens stand") from None
    if serving.engine.eos & set(ids):
        raise InputError("thinking.message", message, "a text without the token that ends a text")
    return ids
