"""Values that may be of several types: objects that say by their ``type`` what they are, and strings or lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator, Discriminator

from ladle.merging.exceptions import InputError


def kind(value: Any) -> str | None:
    """The tag of an object: its ``type`` in angle brackets, which error paths leave out."""
    type_name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{type_name}>" if isinstance(type_name, str) else None


def only_kinds(*kinds: str, default: Callable[[dict[str, Any]], str | None] = lambda _: None) -> BeforeValidator:
    """Refuses objects of another ``type`` than ``kinds``, by the name of theirs. ``default``: the type of one that does
    not say it; None where it must."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"allowed: an object with a type, one of {', '.join(kinds)}")
        given = value.get("type")
        if given is None and (meant := default(value)) is not None:
            return {**value, "type": meant}
        if given not in kinds:
            raise InputError("type", given, ", ".join(kinds))
        return value

    return BeforeValidator(check)


def _form(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


TEXT_OR_LIST = Discriminator(
    _form, custom_error_type="text_or_list", custom_error_message="allowed: a string or a list of objects"
)
"""Tells a string, tagged ``<text>``, from a list, tagged ``<list>``."""

OF_KINDS = Discriminator(kind)
"""Tells objects by ``kind``."""
