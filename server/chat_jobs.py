"""A conversation, or a prompt as it is, as work for the engine: what all endpoints but text completions make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ladle.server.fields.chat_messages import Message
from ladle.server.fields.conversation import Conversation, Question
from ladle.server.fields.thinking_options import thinking_of, verifier_of
from ladle.server.fields.token_ids import TokenIds
from ladle.server.fields.tool_calling import ToolCalling, answer_grammar
from ladle.server.generation import Job, make_job, require_few
from ladle.server.prompts import encode_chat, encode_prompt, tokens_of_chat
from ladle.server.reader import Reader
from ladle.server.serving import Serving
from ladle.server.state import ServerState
from ladle.server.steering import plan_of


@dataclass(frozen=True)
class ChatJob:
    """What a conversation wants generated.

    Attributes:
        serving: the family that answers.
        job: for its engine.
        model: what replies call it.
        calling: the functions that its answers may call, if any.
    """

    serving: Serving
    job: Job
    model: str
    calling: ToolCalling | None


async def chat_job(state: ServerState, serving: Serving, reader: Reader, body: Conversation) -> ChatJob:
    """Prepare the answers to a conversation, whose texts go through ``reader``. Raises what ``answer_job`` does."""
    return await answer_job(state, serving, reader, body, body.messages)


async def prompt_tokens(state: ServerState, serving: Serving, reader: Reader, body: Conversation) -> int:
    """How many tokens the prompt of a conversation has, of which nothing is computed. Raises what ``answer_job`` does
    for what can be seen without an answer."""
    plan_of(serving.family, body.model, body.steering, state.settings.allow_trace)
    calling = ToolCalling.of(serving, body)
    form = body.chat_form(state.settings.special_tokens_in_messages)
    tools = calling.definitions if calling else ()
    return len(await tokens_of_chat(serving, reader, body.messages, tools, form))


async def answer_job(
    state: ServerState,
    serving: Serving,
    reader: Reader,
    body: Question,
    messages: Sequence[Message] | None,
    prompt: str | TokenIds | None = None,
) -> ChatJob:
    """Prepare the answers to ``messages``, or to a ``prompt`` as it is.

    Raises:
        ApiError: an unknown model, or more than fits the context.
        ClientGone: the client left meanwhile.
        InputError: what the family, its chat template or this server does not do.
    """
    plan = plan_of(serving.family, body.model, body.steering, state.settings.allow_trace)
    require_few(state.settings, body.choices, 1)
    verifier = verifier_of(serving.thinking, body, state.settings.min_verifier_tokens, plan.blocks)
    views = plan.views if verifier is None else (*plan.views, verifier.question)
    calling = ToolCalling.of(serving, body)
    if messages is None:
        assert prompt is not None, "the schema has checked it"
        encoded = await encode_prompt(serving, reader, prompt, views=views)
    else:
        form = body.chat_form(state.settings.special_tokens_in_messages)
        tools = calling.definitions if calling else ()
        encoded = await encode_chat(serving, reader, messages, views, tools, form)
    grammar = await answer_grammar(serving, body, calling, reader.compile)
    thinking = thinking_of(serving, body, encoded.ids, messages is None or bool(body.continue_final_message), verifier)
    limit_field, limit = body.limit
    job = make_job(
        state,
        serving,
        plan,
        [encoded],
        body,
        limit,
        body.alternatives,
        limit_field,
        grammar,
        calling.stop if calling else (),
        caller=reader.caller,
        meter=reader.meter,
        thinking=thinking,
    )
    return ChatJob(serving, job, body.model or serving.family.name, calling)
