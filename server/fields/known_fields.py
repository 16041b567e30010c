"""Fields of OpenAI's API that are not supported. A client may send them at the value that changes nothing; any other
value is refused by name, because a field that is accepted and ignored answers a question nobody asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, create_model

from ladle.server.fields.sampling import SamplingFields

Defaults = Mapping[str, tuple[Any, ...]]

CHAT: Defaults = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
COMPLETIONS: Defaults = {"best_of": (1,), "suffix": ("",)}
# What official clients send back when an answer of theirs becomes part of the next question.
MESSAGE: Defaults = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
}


def only(*defaults: Any) -> Callable[[Any], Any]:
    """A validator that lets null and ``defaults`` pass."""

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(default) and value == default for default in defaults):
            return None
        allowed = ", ".join(repr(default) for default in (None, *defaults))
        raise ValueError(f"this server does not support it; allowed: {allowed}")

    return check


def with_known(base: type[Any], name: str, known: Defaults) -> type[Any]:
    """``base`` with the fields of ``known``, each accepted at its defaults only."""
    fields: dict[str, Any] = {
        field: (
            Annotated[Any, AfterValidator(only(*defaults)), WithJsonSchema({"enum": [None, *defaults]})],
            Field(None, description="not supported"),
        )
        for field, defaults in known.items()
    }
    return create_model(name, __base__=base, **fields)


ChatFields: Any = with_known(SamplingFields, "ChatFields", CHAT)
CompletionFields: Any = with_known(SamplingFields, "CompletionFields", COMPLETIONS)
