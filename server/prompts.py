"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from ladle.guidance.plan import PromptView
from ladle.merging.errors import InputError
from ladle.server.fields.messages import Message, TokenIds
from ladle.server.serving import Serving
from ladle.server.tools.formats import format_of

_CHARACTERS = 8  # of a token; ordinary text has fewer
_SLACK = 64  # tokens by which the beginning of a text may be encoded otherwise than within the whole of it
_LONG = 2000  # characters from which work moves to a thread; below, the hand-over costs more than the work


@dataclass(frozen=True)
class Prompt:
    """Token ids of what the client sent, and of how the plan's sources with a view of their own see it."""

    ids: TokenIds
    views: Mapping[PromptView, TokenIds] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest view, the client's included."""
        return max(map(len, (self.ids, *self.views.values())))


async def encode_prompt(
    serving: Serving, prompt: str | TokenIds, field: str = "prompt", views: Sequence[PromptView] = ()
) -> Prompt:
    """A raw prompt, with the special tokens the tokenizer puts in front.

    A ``system`` view puts its text and an empty line in front of the prompt, a ``prompt`` view stands in its place; an
    empty one is the token that begins a text, or the prompt's last one where the tokenizer has none.

    Raises:
        InputError: no tokens, a token that does not exist, or more than the context holds.
    """
    if isinstance(prompt, str):
        ids = await _off_loop(len(prompt), _encode, serving, prompt, True, field)
    else:
        ids = prompt
        for index, token in enumerate(ids):
            if token >= serving.vocabulary:
                raise InputError(f"{field}[{index}]", token, f"token ids from 0 to {serving.vocabulary - 1}")
    _check(serving, ids, field)
    seen: dict[PromptView, TokenIds] = {}
    for view in views:
        if view.kind == "system" and isinstance(prompt, str):
            text = f"{view.text}\n\n{prompt}"
            seen[view] = await _off_loop(len(text), _encode, serving, text, True, field)
        elif view.kind == "system":
            seen[view] = await _off_loop(len(view.text), _encode, serving, f"{view.text}\n\n", True, field) + ids
        elif view.text:
            seen[view] = await _off_loop(len(view.text), _encode, serving, view.text, True, field)
        else:
            begin = serving.engine.tokenizer.bos_token_id
            seen[view] = (begin,) if isinstance(begin, int) else ids[-1:]
        _check(serving, seen[view], field)
    return Prompt(ids, seen)


async def encode_chat(
    serving: Serving,
    messages: Sequence[Message],
    views: Sequence[PromptView] = (),
    tools: Sequence[dict[str, Any]] = (),
) -> Prompt:
    """A conversation in the base's chat template, ready for the assistant's answer.

    A ``system`` view is the conversation under another system message, a ``prompt`` view a conversation of that one
    user message; an empty one is what begins an answer and nothing else. ``tools``: definitions of the functions that
    may be called, which the template must know to show.

    Raises:
        InputError: field ``messages``: the template refuses them, or knows nothing of calls that stand in them, or more
            tokens than the context holds. Field ``tools``: it does not show them.
    """
    if not serving.engine.tokenizer.chat_template:
        allowed = "nothing, because the base has no chat template; use /v1/completions or /v1/generate with a prompt"
        raise InputError("messages", f"{len(messages)} messages", allowed)
    for index, message in enumerate(messages):
        if message.about_tools is not None and format_of(serving.engine.tokenizer) is None:
            allowed = "'system', 'user' or 'assistant' without calls, because the base's chat template has no tools"
            raise InputError(f"messages[{index}].{message.about_tools}", message.role, allowed)
    turns = [message.turn() for message in messages]
    size = sum(len(turn["content"]) for turn in turns) + (len(str(tools)) if tools else 0)
    ids = _check(serving, await _off_loop(size, _render_and_encode, serving, turns, tools), "messages")
    seen = {}
    for view in views:
        if view.kind == "system":
            others = [turn for turn in turns if turn["role"] != "system"]
            turned = [{"role": "system", "content": view.text}, *others]
            rendered = await _off_loop(size + len(view.text), _render_and_encode, serving, turned, tools)
        elif view.text:
            only = [{"role": "user", "content": view.text}]
            rendered = await _off_loop(len(view.text), _render_and_encode, serving, only)
        else:
            rendered = await _off_loop(size, _beginning_of_an_answer, serving, turns)
        seen[view] = _check(serving, rendered, "messages")
    return Prompt(ids, seen)


def _beginning_of_an_answer(serving: Serving, turns: list[dict[str, Any]]) -> TokenIds:
    """What the template puts after the last message for the assistant to go on from; the last token of the prompt
    where that is nothing."""
    asked, whole = _render(serving, turns, False), _render(serving, turns, True)
    ids = _encode(serving, whole[len(asked) :], False, "messages") if whole.startswith(asked) else ()
    return ids or _encode(serving, whole, False, "messages")[-1:]


def _render_and_encode(serving: Serving, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> TokenIds:
    text = _render(serving, turns, True, tools)
    names = [tool["function"]["name"] for tool in tools]
    hidden = next((name for name in names if name not in text), None)
    if hidden is not None:
        raise InputError("tools", hidden, "nothing here, because the base's chat template does not show it")
    return _encode(serving, text, False, "messages")


def _render(serving: Serving, turns: list[dict[str, Any]], answer: bool, tools: Sequence[dict[str, Any]] = ()) -> str:
    options: dict[str, Any] = {"tools": list(tools)} if tools else {}
    try:
        text = serving.engine.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=answer, **options
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns[:20])
        raise InputError("messages", roles, f"what the base's chat template takes ({error})") from None
    assert isinstance(text, str)
    return text


def _encode(serving: Serving, text: str, special: bool, field: str) -> TokenIds:
    """Raises InputError for a text whose beginning alone is too long, because megabytes take seconds to encode."""
    # A batch of one: unlike a single encode it lets other threads run meanwhile.
    encode = serving.engine.tokenizer.backend_tokenizer.encode_batch_fast
    limit = serving.engine.max_context
    enough = _CHARACTERS * (limit + _SLACK)
    if len(text) > 2 * enough:
        tokens = len(encode([text[:enough]], add_special_tokens=False)[0].ids) - _SLACK
        if tokens >= limit:
            raise _too_long(serving, f"more than {tokens} tokens", field)
    return tuple(encode([text], add_special_tokens=special)[0].ids)


async def _off_loop(size: int, function: Any, *arguments: Any) -> TokenIds:
    ids: TokenIds = await asyncio.to_thread(function, *arguments) if size > _LONG else function(*arguments)
    return ids


def _check(serving: Serving, ids: TokenIds, field: str) -> TokenIds:
    if not ids:
        raise InputError(field, "", "at least one token")
    if len(ids) >= serving.engine.max_context:
        raise _too_long(serving, f"{len(ids)} tokens", field)
    return ids


def _too_long(serving: Serving, length: str, field: str) -> InputError:
    limit = serving.engine.max_context
    allowed = f"at most {limit - 1} tokens, because the context holds {limit} and an answer needs one"
    return InputError(field, length, allowed)
