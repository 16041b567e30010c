"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ladle.merging.errors import InputError
from ladle.server.openai_schemas import Message, TokenIds
from ladle.server.state import Serving

_LONG = 2000  # characters from which work moves to a thread; below, the hand-over costs more than the work


async def encode_prompt(serving: Serving, prompt: str | TokenIds, field: str = "prompt") -> TokenIds:
    """Token ids of a raw prompt, with the special tokens the tokenizer puts in front.

    Raises:
        InputError: no tokens, a token that does not exist, or more than the context holds.
    """
    if isinstance(prompt, str):
        ids = await _off_loop(len(prompt), _encode, serving, prompt, True)
    else:
        ids = prompt
        for index, token in enumerate(ids):
            if token >= serving.vocabulary:
                raise InputError(f"{field}[{index}]", token, f"token ids from 0 to {serving.vocabulary - 1}")
    return _checked(serving, ids, field)


async def encode_chat(serving: Serving, messages: Sequence[Message]) -> TokenIds:
    """Token ids of a conversation in the base's chat template, ready for the assistant's answer.

    Raises:
        InputError: field ``messages``: the template refuses them, or more tokens than the context holds.
    """
    if not serving.engine.tokenizer.chat_template:
        allowed = "nothing, because the base has no chat template; use /v1/completions or /v1/generate with a prompt"
        raise InputError("messages", f"{len(messages)} messages", allowed)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    size = sum(len(turn["content"]) for turn in turns)
    ids = await _off_loop(size, _render_and_encode, serving, turns)
    return _checked(serving, ids, "messages")


def _render_and_encode(serving: Serving, turns: list[dict[str, str]]) -> TokenIds:
    try:
        text = serving.engine.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns[:20])
        raise InputError("messages", roles, f"what the base's chat template takes ({error})") from None
    assert isinstance(text, str)
    return _encode(serving, text, False)


def _encode(serving: Serving, text: str, special: bool) -> TokenIds:
    # A batch of one: unlike a single encode it lets other threads run meanwhile.
    backend = serving.engine.tokenizer.backend_tokenizer
    return tuple(backend.encode_batch_fast([text], add_special_tokens=special)[0].ids)


async def _off_loop(size: int, function: Any, *arguments: Any) -> TokenIds:
    ids: TokenIds = await asyncio.to_thread(function, *arguments) if size > _LONG else function(*arguments)
    return ids


def _checked(serving: Serving, ids: TokenIds, field: str) -> TokenIds:
    if not ids:
        raise InputError(field, "", "at least one token")
    limit = serving.engine.max_context
    if len(ids) >= limit:
        allowed = f"at most {limit - 1} tokens, because the context holds {limit} and an answer needs one"
        raise InputError(field, f"{len(ids)} tokens", allowed)
    return ids
