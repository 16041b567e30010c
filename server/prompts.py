"""Prompts to token ids, without holding up the event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import InputError
from ladle.server.api_errors import ApiError, Overflow, context_overflow
from ladle.server.chat_rendering import ChatRenderer
from ladle.server.fields.chat_messages import ChatForm, Message
from ladle.server.fields.token_ids import TokenIds, require_known
from ladle.server.reader import Reader
from ladle.server.serving import Serving
from ladle.server.tools.formats import format_of

_CHARACTERS = 8  # of a token; ordinary text has fewer
_USUAL = 4  # characters of a token on average
_YES_OR_NO = "Answer with yes or no."
_SLACK = 64  # tokens by which the beginning of a text may be encoded otherwise than within the whole of it


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
        return max(map(len, (self.ids, *(ids for view, ids in self.views.items() if not view.asks))))

    @property
    def question(self) -> int:
        """Tokens of the longest question that is asked behind an answer."""
        return max((len(ids) for view, ids in self.views.items() if view.asks), default=0)

    @property
    def question_field(self) -> str:
        """What of the request asks it."""
        asked = [view for view in self.views if view.asks]
        return max(asked, key=lambda view: len(self.views[view])).field or "steering.monitor" if asked else ""

    @property
    def longest_field(self) -> str:
        """What is to blame for the length of the longest view, in words."""
        prompts = [view for view in self.views if not view.asks]
        longest = max(prompts, key=lambda view: len(self.views[view]), default=None)
        if longest is None or longest.field is None or len(self.views[longest]) <= 2 * len(self.ids):
            return "the prompt"
        return longest.field


async def encode_prompt(
    serving: Serving,
    reader: Reader,
    prompt: str | TokenIds,
    field: str = "prompt",
    views: Sequence[PromptView] = (),
    special: bool = True,
) -> Prompt:
    """A raw prompt, with what the tokenizer puts in front of a text unless ``special`` is false. The names of special
    tokens in it are these tokens.

    A ``system`` view puts its text and an empty line in front of the prompt, a ``prompt`` view stands in its place; an
    empty one is the token that begins a text, or the prompt's last one where the tokenizer has none. A ``question``
    view is a paragraph behind the answer, a ``doubt`` view one behind a thought.

    Raises:
        ApiError: more tokens than the context holds.
        ClientGone: the client left meanwhile.
        InputError: no tokens, or a token that does not exist.
    """
    if isinstance(prompt, str):
        ids = _check(serving, await reader.read(len(prompt), _encode, serving, prompt, special, field), field)
    else:
        ids = _check(serving, prompt, field)  # first: of what is too long nothing else is looked at
        require_known(ids, serving.vocabulary, field)
    seen: dict[PromptView, TokenIds] = {}
    size = len(prompt) if isinstance(prompt, str) else _USUAL * len(ids)
    for view in views:
        blamed = _blamed(view, size, field)
        if view.asks:
            asked = f"\n\n{view.text} {_YES_OR_NO}\nAnswer:"
            ids_of_it = await reader.read(len(asked), _encode, serving, asked, False, view.field or field)
            seen[view] = _behind(serving, view, _answerable(serving, ids_of_it, " ", view.field))
        elif view.kind == "system" and isinstance(prompt, str):
            text = f"{view.text}\n\n{prompt}"
            seen[view] = await reader.read(len(text), _encode, serving, text, special, blamed)
        elif view.kind == "system":
            seen[view] = await reader.read(len(view.text), _encode, serving, f"{view.text}\n\n", special, blamed) + ids
        elif view.text:
            seen[view] = await reader.read(len(view.text), _encode, serving, view.text, special, blamed)
        else:
            begin = serving.engine.tokenizer.bos_token_id
            seen[view] = (begin,) if isinstance(begin, int) else ids[-1:]
        _check(serving, seen[view], blamed)
    return Prompt(ids, seen)


async def encode_chat(
    serving: Serving,
    reader: Reader,
    messages: Sequence[Message],
    views: Sequence[PromptView] = (),
    tools: Sequence[dict[str, Any]] = (),
    form: ChatForm = ChatForm(),
) -> Prompt:
    """A conversation in the base's chat template, ready for the assistant's answer unless ``form`` says otherwise.

    A ``system`` view is the conversation under another system message, a ``prompt`` view a conversation of that one
    user message; an empty one is what begins an answer and nothing else; a ``question`` view is what the template puts
    behind an answer, and a ``doubt`` view behind a thought, when the user asks that next. ``tools``: definitions of the
    functions that may be called, which the template must know to show.

    Raises:
        ApiError: more tokens than the context holds.
        ClientGone: the client left meanwhile.
        InputError: field ``messages``: the template refuses them, or knows nothing of calls that stand in them. Field
            ``tools``: it does not show them.
    """
    turns, size = await _turns(serving, reader, messages, tools, form)
    shown = _renderer(serving, tools, form)
    ids = _check(serving, await reader.read(size, shown.ids, turns), "messages")
    seen = {}
    for view in views:
        blamed = _blamed(view, size, "messages")
        seen_by_it = _renderer(serving, tools, form, blamed)
        if view.asks:
            question = f"{view.text} {_YES_OR_NO}"
            shown_after = seen_by_it.without_tools().after_answer
            asked = await reader.read(size + len(question), shown_after, turns, question, view.field)
            rendered = _behind(serving, view, _answerable(serving, asked, "", view.field))
        elif view.kind == "system":
            others = [turn for turn in turns if turn["role"] != "system"]
            turned = [{"role": "system", "content": view.text}, *others]
            rendered = await reader.read(size + len(view.text), seen_by_it.ids, turned)
        elif view.text:
            # What is continued is a part of the answer, whatever was asked.
            only = [{"role": "user", "content": view.text}, *(turns[-1:] if form.continues else ())]
            rendered = await reader.read(size + len(view.text), seen_by_it.without_tools().ids, only)
        else:
            rendered = await reader.read(size, shown.beginning_of_an_answer, turns)
        seen[view] = _check(serving, rendered, blamed)
    return Prompt(ids, seen)


def _answerable(serving: Serving, asked: TokenIds, space: str, field: str | None) -> TokenIds:
    """``asked``, what yes and no begin with alike, and then the token of each in which they differ, as they would come
    next: behind a ``space``."""
    encode = serving.engine.tokenizer.backend_tokenizer.encode
    yes, no = (encode(f"{space}{word}", add_special_tokens=False).ids for word in ("Yes", "No"))
    alike = 0
    while alike < min(len(yes), len(no)) and yes[alike] == no[alike]:
        alike += 1
    if alike == min(len(yes), len(no)):
        reason = "the base's tokenizer does not tell yes from no"
        raise InputError(field or "steering.monitor.ask", "a question", reason=reason)
    return (*asked, *yes[:alike], yes[alike], no[alike])


def _behind(serving: Serving, view: PromptView, asked: TokenIds) -> TokenIds:
    """What ``view`` asks behind an answer, or a thought: that is closed first, and so is the one that a template opens
    in front of the answer to any question, which would be thought about instead."""
    tags = serving.thinking
    if tags is None:
        return asked
    *question, yes, no = asked
    opened = tags.close_ids if tags.opened(question, False) else ()
    return (*(tags.close_ids if view.kind == "doubt" else ()), *question, *opened, yes, no)


async def tokens_of_text(serving: Serving, reader: Reader, text: str, special: bool) -> TokenIds:
    """The tokens of ``text``, which may be none, or somewhat more than the context holds. Raises ApiError,
    ClientGone."""
    return await reader.read(len(text), _encode, serving, text, special, "prompt")


async def tokens_of_answer(serving: Serving, reader: Reader, text: str, trusts_texts: bool) -> TokenIds:
    """The tokens of ``text`` where it is what an assistant answered; the names of special tokens in it are texts unless
    ``trusts_texts``. Raises ApiError, ClientGone, InputError."""
    mark = None
    if not trusts_texts:
        (turn,), _, mark = serving.control_tokens.mark([{"role": "assistant", "content": text}], [])
        text = turn["content"]
    return await reader.read(len(text), _encode, serving, text, False, "texts", mark)


async def tokens_of_chat(
    serving: Serving, reader: Reader, messages: Sequence[Message], tools: Sequence[dict[str, Any]], form: ChatForm
) -> TokenIds:
    """The tokens of a conversation. Raises ApiError, ClientGone, and InputError as ``encode_chat`` does."""
    turns, size = await _turns(serving, reader, messages, tools, form)
    return await reader.read(size, _renderer(serving, tools, form).ids, turns)


def _renderer(
    serving: Serving, tools: Sequence[dict[str, Any]], form: ChatForm, field: str = "messages"
) -> ChatRenderer:
    """What renders a conversation; ``field`` is blamed for a text that is too long."""

    def encode(text: str, mark: str | None) -> TokenIds:
        return _encode(serving, text, False, field, mark)

    return ChatRenderer(serving, form, tools, encode)


async def _turns(
    serving: Serving, reader: Reader, messages: Sequence[Message], tools: Sequence[dict[str, Any]], form: ChatForm
) -> tuple[list[dict[str, Any]], int]:
    """The messages as templates take them, and about how many characters they are."""
    return await reader.made(len(messages), partial(_turned, serving, messages, tools, form))


def _turned(
    serving: Serving, messages: Sequence[Message], tools: Sequence[dict[str, Any]], form: ChatForm
) -> tuple[list[dict[str, Any]], int]:
    if not serving.engine.tokenizer.chat_template:
        reason = "the base has no chat template; use /v1/completions or /v1/generate with a prompt"
        raise InputError("messages", f"{len(messages)} messages", reason=reason)
    for index, message in enumerate(messages):
        if message.about_tools is not None and format_of(serving.engine.tokenizer) is None:
            reason = "the base's chat template has no tools"
            allowed = "'system', 'user' or 'assistant' without calls"
            raise InputError(f"messages[{index}].{message.about_tools}", message.role, allowed, reason)
    said = sum(len((message.content or "").strip()) for message in messages if message.role != "assistant")
    # Templates leave out what an assistant thought, and show everybody else's words, but for spaces around them.
    least = serving.bound.of_bytes(said)
    if least > serving.engine.max_context:
        raise _too_long(serving, least, "messages")
    turns = [message.turn() for message in messages]
    size = sum(_size(turn) for turn in turns) + _size(list(tools)) + _size(dict(form.variables))
    return turns, size


def _size(value: Any) -> int:
    """About how many characters a JSON value has."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, dict):
        return sum(len(key) + 6 + _size(item) for key, item in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 8


def _encode(serving: Serving, text: str, special: bool, field: str, mark: str | None = None) -> TokenIds:
    """Raises ApiError for a text whose beginning alone is too long, because megabytes take seconds to encode.

    ``mark``: what keeps texts from becoming special tokens; it is no part of the text."""
    # A batch of one: unlike a single encode it lets other threads run meanwhile.
    encode = serving.engine.tokenizer.backend_tokenizer.encode_batch_fast
    limit = serving.engine.max_context
    if len(text) > limit and mark is None and (least := serving.bound.least_tokens(text)) > limit:
        raise _too_long(serving, least, field)
    enough = _CHARACTERS * (limit + _SLACK)
    if len(text) > 2 * enough:
        tokens = len(encode([text[:enough]], add_special_tokens=False)[0].ids) - _SLACK
        if tokens >= limit:
            raise _too_long(serving, tokens + 1, field)
    if mark is None:
        return tuple(encode([text], add_special_tokens=special)[0].ids)
    try:
        return serving.control_tokens.encode(text, mark)
    except ValueError:
        raise InputError(field, "texts", "texts without names of special tokens") from None


def _blamed(view: PromptView, size: int, field: str) -> str:
    """The field to blame where a view is too long: its own text's, where that is longer than the ``size`` characters of
    what the client asks."""
    return view.field if view.field is not None and len(view.text) > size else field


def _check(serving: Serving, ids: TokenIds, field: str) -> TokenIds:
    if not ids:
        raise InputError(field, "", "at least one token")
    if len(ids) >= serving.engine.max_context:
        raise _too_long(serving, len(ids), field, exactly=True)
    return ids


def _too_long(serving: Serving, tokens: int, field: str, *, exactly: bool = False) -> ApiError:
    """``tokens``: how many there are, at least, or ``exactly``."""
    length = f"{tokens} tokens" if exactly else f"more than {tokens - 1} tokens"
    overflow = Overflow(serving.engine.max_context, tokens)
    return context_overflow(overflow, f"{field} has {length}, and an answer needs one", field)
