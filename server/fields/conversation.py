"""A chat as all endpoints with messages understand it, whatever its fields are called in the request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ladle.merging.exceptions import InputError
from ladle.server.api_errors import ApiError
from ladle.server.fields.chat_messages import ChatTemplateFields, Messages
from ladle.server.fields.form import FormFields
from ladle.server.fields.sampling import SamplingFields
from ladle.server.fields.thinking_options import ThinkingFields


class Question(FormFields, ChatTemplateFields, ThinkingFields, SamplingFields):
    """Functions, the form of the answer, how it thinks before, and how to sample it."""

    @property
    def alternatives(self) -> int | None:
        """How many top alternatives to report; None without logprobs."""
        return None


class Conversation(Question):
    """Messages, and what is said of the answer to them."""

    messages: Messages


class Spelling:
    """What the fields of a conversation are called in a request of another API.

    Args:
        names: patterns of whole beginnings of our fields, and what takes their place; the first that fits counts.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = [(re.compile(pattern), name) for pattern, name in names.items()]

    def of(self, field: str) -> str:
        """``field`` as the request calls it."""
        for pattern, name in self._names:
            match = pattern.match(field)
            if match is not None and field[match.end() : match.end() + 1] in ("", ".", "["):
                return match.expand(name) + field[match.end() :]
        return field

    def error(self, error: ApiError) -> ApiError:
        """``error``, about the field as the request calls it."""
        field = error.param
        if field is None or self.of(field) == field:
            return error
        spelt = self.of(field)
        message = error.message if error.reason is None else f"{spelt}: {error.reason}"
        told = ApiError(error.status_code, message, param=spelt, code=error.code, headers=error.headers)
        told.overflow = error.overflow
        return told

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Errors that are raised inside name fields as the request does."""
        try:
            yield
        except InputError as error:
            raise error.at(self.of(error.field)) from None
        except ApiError as error:
            raise self.error(error) from None
