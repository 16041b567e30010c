"""The options of ``ladle serve``: made of the fields of ``ServerSettings``, which is the only list of them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ladle.server.settings import ServerSettings, Size

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def with_server_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with a parameter for each field of ``ServerSettings`` before its own keyword parameters, as typer
    reads them. What was not given arrives as None."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    fields = [_parameter(name, field) for name, field in ServerSettings.model_fields.items()]
    command.__signature__ = inspect.Signature([*fields, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*fields, *own)}
    return command


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra: Any = field.json_schema_extra or {}
    described = field.description or ""
    text = described[:1].upper() + described[1:] + "."
    shown: Any = extra.get("shown_default", _shown(field)) or False
    kind = _kind(field)
    info: Any
    if extra.get("argument"):
        info = typer.Argument(help=text, show_default=shown)
    else:
        flag = extra.get("flag", f"--{name.replace('_', '-')}")
        flags = f"{flag}/--no-{flag.removeprefix('--')}" if kind is bool and not extra.get("only_on") else flag
        info = typer.Option(flags, help=text, show_default=shown)
    annotation = Annotated[kind | None, info]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> Any:
    """What typer is to read: sizes are texts, which the settings parse."""
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if any(isinstance(part, Size) for part in field.metadata):
        return str
    if get_origin(kind) is Literal or kind in (bool, int, float, str, Path):
        return kind
    return list[str]


def _shown(field: FieldInfo) -> str:
    """The default as text; empty where there is none."""
    value = field.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, "", []):
        return ""
    if _kind(field) is str and isinstance(value, int):
        size, unit = next(((size, unit) for size, unit in _UNITS if value % size == 0), (1, ""))
        return f"{value // size}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
