"""Conversations through the base's chat template: text, and token ids in which texts stay texts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ladle.merging.exceptions import InputError
from ladle.server.fields.chat_messages import ChatForm
from ladle.server.fields.token_ids import TokenIds
from ladle.server.serving import Serving

Encode = Callable[[str, str | None], TokenIds]
"""Token ids of a text, without those of a mark in it (see ``control_tokens``) if there is one."""


class ChatRenderer:
    """Writes conversations in one form.

    Args:
        tools: definitions of the functions that may be called, which the template must know to show.
        encode: how texts become tokens; it may refuse one that is too long.
    """

    def __init__(self, serving: Serving, form: ChatForm, tools: Sequence[dict[str, Any]], encode: Encode) -> None:
        self._serving = serving
        self._form = form
        self._tools = list(tools)
        self._encode = encode

    def ids(self, turns: Sequence[dict[str, Any]]) -> TokenIds:
        """Token ids of a conversation.

        Raises:
            InputError: the template refuses it, or does not show the tools.
        """
        text, mark = self._text(turns)
        names = [tool["function"]["name"] for tool in self._tools]
        shown = text.replace(mark, "") if mark else text
        hidden = next((name for name in names if name not in shown), None)
        if hidden is not None:
            raise InputError("tools", hidden, reason="the base's chat template does not show it")
        return self._encode(text, mark)

    def without_tools(self) -> ChatRenderer:
        """A renderer of conversations that know of no functions."""
        return ChatRenderer(self._serving, self._form, (), self._encode)

    def beginning_of_an_answer(self, turns: Sequence[dict[str, Any]]) -> TokenIds:
        """What comes after the last message that is not the answer's own beginning: what the template puts there for
        the assistant, and a message that is continued; the last token of the prompt where that is nothing."""
        continued = self._form.continues
        others = list(turns[:-1] if continued else turns)
        closed = ChatRenderer(
            self._serving, replace(self._form, opens_answer=False, continues=False), self._tools, self._encode
        )
        # What a template makes of no messages at all is nobody's business.
        before = closed._text(others)[0] if others else ""
        whole, mark = self._text(turns)
        ids = self._encode(whole[len(before) :], mark) if whole.startswith(before) else ()
        return ids or self._encode(whole, mark)[-1:]

    def after_answer(self, turns: Sequence[dict[str, Any]], question: str, field: str | None) -> TokenIds:
        """What comes behind an answer to ``turns`` when the user asks ``question`` next, up to where that is answered.
        ``field`` asks it, the family where it is None.

        Raises:
            InputError: the template refuses the conversation, or does not show the answer as it is.
        """
        place = f"[{secrets.token_hex(8)}]"  # stands for the answer, whose text is not known yet
        others = list(turns[:-1] if self._form.continues else turns)
        told = [*others, {"role": "assistant", "content": place}, {"role": "user", "content": question}]
        form = replace(self._form, opens_answer=True, continues=False)
        text, mark = ChatRenderer(self._serving, form, self._tools, self._encode)._text(told)
        _, separator, after = text.rpartition(place)
        if not separator:
            reason = "the base's chat template leaves the answer out"
            raise InputError(field or "steering.monitor.ask", question, reason=reason)
        return self._encode(after, mark)

    def _text(self, turns: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
        """The conversation, and the mark in it of what must not become a special token."""
        others: list[Any] = [self._tools, dict(self._form.variables)]
        told, mark = list(turns), None
        if not self._form.trusts_texts:
            told, others, mark = self._serving.control_tokens.mark(told, others)
        return self._render(told, *others), mark

    def _render(self, turns: list[dict[str, Any]], tools: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        options = {**variables, **({"tools": tools} if tools else {})}
        try:
            text = self._serving.engine.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=self._form.opens_answer,
                continue_final_message=self._form.continues,
                **options,
            )
        except RecursionError:
            raise  # of a body that is nested too deeply, which has an answer of its own
        # Templates are programs that were written for other conversations: they fail as programs do, in any way.
        except Exception as error:
            roles = ", ".join(turn["role"] for turn in turns[:20])
            field = "messages" if not self._form.continues else "continue_final_message"
            reason = f"the base's chat template refuses these messages ({str(error) or type(error).__name__})"
            raise InputError(field, roles, reason=reason) from None
        assert isinstance(text, str)
        return text
