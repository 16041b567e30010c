"""The request fields that say how an answer thinks before it is given, and what the engine makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ladle.guidance.plan import Blocks, PromptView
from ladle.merging.exceptions import InputError
from ladle.merging.family.manifest_tables import VerifierTable
from ladle.server.engine.requests.thinking import Thinking, Verifier
from ladle.server.http.strict_model import StrictModel
from ladle.server.serving import Serving
from ladle.server.text.thinking_tags import ThinkingTags

_MAX_MESSAGE = 2000  # characters
EVERY = 64
ASK = "Does the reasoning so far already hold the final answer?"
ABOVE = 0.5
# What there is without a thought anyway, and what other servers' models do where nothing is said.
_WITHOUT_TAGS = (None, "none", "medium")

Budget = Annotated[int, Field(ge=0, le=1 << 31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class VerifierOptions(StrictModel):
    """``thinking.verifier``: the base is asked on the way whether the thought holds the answer, and ends it if so."""

    every: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        None, description=f"tokens of the thought between two questions, which come where a sentence ends; {EVERY}"
    )
    ask: Annotated[str, Field(min_length=1, max_length=_MAX_MESSAGE)] | None = Field(
        None, description="a question that is answered with yes or no"
    )
    above: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description=f"the probability of yes, against no, above which the thought ends; {ABOVE}"
    )


def _form(value: object) -> str | None:
    return "<off>" if value is False else "<on>" if isinstance(value, dict | VerifierOptions) else None


VerifierField = Annotated[
    Annotated[Literal[False], Tag("<off>")] | Annotated[VerifierOptions, Tag("<on>")],
    Discriminator(
        _form,
        custom_error_type="verifier",
        custom_error_message="allowed: an object with every, ask and above, or false for none",
    ),
]


class ThinkingOptions(StrictModel):
    """``thinking``: the thought in front of the answer is told apart and, with a budget, ended. Other servers' clients
    say by a type whether there is one at all."""

    type: Literal["enabled", "disabled", "adaptive"] | None = Field(
        None, description="disabled: no thought; adaptive: told apart where the family thinks; default: enabled"
    )
    budget: Budget | None = Field(None, description="most tokens of the thought; default: any number")
    message: Annotated[str, Field(max_length=_MAX_MESSAGE)] | None = Field(
        None, description="what comes in front of the closing tag where the thought is ended"
    )
    verifier: VerifierField | None = Field(
        None, description="ends the thought once the base finds the answer in it; default: what the family says"
    )

    @model_validator(mode="after")
    def _message_at_the_end(self) -> ThinkingOptions:
        if self.message is not None and self.budget is None and not self.verifier:
            reason = "it needs a budget, at whose end it comes, or a verifier, which ends the thought too"
            raise InputError("thinking.message", self.message, reason=reason)
        every = self.verifier.every if self.verifier else None
        if every is not None and self.budget is not None and every >= self.budget:
            allowed = f"less than the budget, which is {self.budget}: before that nothing would be asked"
            raise InputError("thinking.verifier.every", every, allowed)
        if self.type == "disabled" and self.budget:
            raise InputError("thinking.budget", self.budget, reason="type disabled leaves no thought to bound")
        if self.type == "disabled" and self.verifier:
            given = self.verifier.model_dump(exclude_none=True)
            raise InputError("thinking.verifier", given, reason="type disabled leaves no thought to end")
        return self


class ThinkingFields(StrictModel):
    """What endpoints with messages say of thoughts."""

    thinking: ThinkingOptions | None = Field(
        None, description="tell the thought in front of the answer apart, and keep it short; extension"
    )
    reasoning_effort: Effort | None = Field(None, description="a budget for the thought that the family has a name for")


def verifier_of(
    tags: ThinkingTags | None, body: ThinkingFields, least: int, blocks: Blocks | None = None
) -> Verifier | None:
    """What may end the thoughts of answers to ``body``: what it says, and elsewhere what the family says; None where
    nothing does, or nothing is thought.

    Args:
        least: tokens between two questions, where the request says how many.
        blocks: how the answer is drawn block by block, beside which there is none.

    Raises:
        InputError: it asks more often, or nothing, or there are blocks.
    """
    options = body.thinking
    if tags is None or (options is None and body.reasoning_effort in (None, "none")):
        return None
    if options is not None and options.type == "disabled":
        return None
    given = None if options is None else options.verifier
    if given is False or (options is not None and options.budget == 0) or (given is None and tags.verifier is None):
        return None
    if blocks is not None:
        if given is None:
            return None
        reason = f"a thought is ended on its way, and with steering.{blocks.option} whole blocks are chosen"
        raise InputError("thinking.verifier", given.model_dump(exclude_none=True), reason=reason)
    asked, own = given or VerifierOptions(), tags.verifier or VerifierTable()  # type: ignore[call-arg]
    if asked.every is not None and asked.every < least:
        raise InputError("thinking.verifier.every", asked.every, f"at least {least} here")
    ask = asked.ask or own.ask or ASK
    if not ask.strip():
        raise InputError("thinking.verifier.ask", ask, "a question that is answered with yes or no")
    above = next(bound for bound in (asked.above, own.above, ABOVE) if bound is not None)
    question = PromptView("doubt", ask, "thinking.verifier.ask" if asked.ask else None)
    return Verifier(asked.every or own.every or EVERY, above, question)


def thinking_of(
    serving: Serving, body: ThinkingFields, prompt: Sequence[int], thought: bool, verifier: Verifier | None = None
) -> Thinking | None:
    """How the answer to ``prompt`` thinks; None where nothing is asked about that.

    Args:
        thought: whether the prompt may hold a part of the thought.
        verifier: what may end it.

    Raises:
        InputError: the family has no tags around thoughts, or no budget of that name; a message that holds a tag.
    """
    tags, options, effort = serving.thinking, body.thinking, body.reasoning_effort
    if options is not None and options.type == "disabled" and effort in (None, "none"):
        options, effort = None, "none"
    if options is not None and options.type == "adaptive":
        if tags is None:
            return None
        if effort is not None and options == ThinkingOptions(type="adaptive"):  # type: ignore[call-arg]
            options = None  # the effort says what there is to say
    if options is None and (effort is None or (tags is None and effort in _WITHOUT_TAGS)):
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
    return Thinking(tags.open_ids, tags.close_ids, budget, said, tags.opened(prompt, thought), verifier)


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
        raise InputError("thinking.message", message, "a text without names of special tokens") from None
    if serving.engine.eos & set(ids):
        raise InputError("thinking.message", message, "a text without the token that ends a text")
    return ids
