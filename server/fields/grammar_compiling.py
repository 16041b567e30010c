"""Grammars of requests, compiled beside the event loop; and what is said of those that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ladle.merging.exceptions import InputError
from ladle.server.api_errors import ApiError, unavailable
from ladle.server.engine.grammars.grammar import (
    Grammar,
    GrammarCompiler,
    GrammarError,
    GrammarSpec,
    GrammarsUnavailable,
)
from ladle.server.fields.json_schema_keywords import inside
from ladle.server.serving import Serving

logger = logging.getLogger(__name__)

_TRIES = 40  # compilations that may be spent on finding the part of a schema that is at fault
_LONG = 300  # characters of a reason
_WHAT = {"json_schema": "a JSON schema", "regex": "a regular expression", "lark": "functions"}

Parts = Sequence[tuple[str, Mapping[str, Any]]]
"""Fields with the schemas in them, bound as ``bind_schema`` does."""


Aside = Callable[[Callable[[], Grammar | None]], Awaitable[Grammar | None]]
"""Runs what takes a while beside the event loop, in turns with other callers."""


@dataclass(frozen=True)
class AskedGrammar:
    """A grammar as a request asks for it.

    Attributes:
        field: that asks for it.
        parts: the schemas that it is made of.
    """

    spec: GrammarSpec
    field: str
    parts: Parts = ()


async def compile_grammar(serving: Serving, ask: Callable[[], AskedGrammar | None], aside: Aside) -> Grammar | None:
    """The grammar ready for use; None where there is nothing to follow.

    Args:
        ask: reads it from the request. Schemas may be large, so that this too is done ``aside``.

    Raises:
        InputError: as ``ask`` does; or it cannot be followed, which names the field and, of a schema, the path to the
            part that is at fault.
        ApiError: 400 ``grammar_too_complex``, or 503 where the system has no process for it.
    """

    def work() -> Grammar | None:
        asked = ask()
        if asked is None:
            return None
        try:
            return replace(serving.grammars.compile(asked.spec), field=asked.field)
        except GrammarError as error:
            raise _refusal(serving.grammars, asked.spec, asked.field, asked.parts, error) from None

    try:
        return await aside(work)
    except GrammarsUnavailable as error:
        logger.error("a grammar could not be compiled: %s", error)
        raise unavailable(str(error), "grammars_unavailable") from None


def _refusal(
    compiler: GrammarCompiler, spec: GrammarSpec, field: str, parts: Parts, error: GrammarError
) -> InputError | ApiError:
    if error.complex:
        # Who is to blame among several is not tried: each try would take as long again.
        where = parts[0][0] if len(parts) == 1 else field
        logger.warning("%s: refused as too complex: %s", where, _short(error))
        return ApiError.about(where, _short(error), code="grammar_too_complex")
    value: object = spec.text if spec.kind == "regex" else f"{len(parts)} schemas together"
    where, reason = field, error
    for name, schema in parts:
        fault = _fault(compiler, schema)
        if fault is not None:
            path, value, reason = fault
            where = f"{name}.{path}" if path else name
            break
    logger.info("%s: refused: %s", where, _short(reason))
    kind = "json_schema" if parts else spec.kind
    return InputError(where, value, f"{_WHAT[kind]} that can be followed, which this cannot: {_short(reason)}")


def _fault(compiler: GrammarCompiler, root: Mapping[str, Any]) -> tuple[str, object, GrammarError] | None:
    """The innermost part of a schema that cannot be followed by itself: its path, itself, and why; None if all can."""
    whole = {"root": _moved(root)}
    beside = {key: root[key] for key in ("$schema",) if key in root}
    left = _TRIES

    def reason(schema: Any) -> GrammarError | None:
        nonlocal left
        left -= 1
        if schema is not root:
            moved = _moved(schema)
            schema = {**beside, **moved, "$defs": {**moved.get("$defs", {}), **whole}}
        try:
            compiler.compile(GrammarSpec.json_schema(schema))
        except GrammarError as error:
            return error
        return None

    part: Any = root
    path, why = "", reason(root)
    if why is None:
        return None
    while left > 0:
        for step, inner_part in [pair for key, value in part.items() for pair in inside(key, value)]:
            if isinstance(inner_part, dict) and inner_part and left > 0 and (inner := reason(inner_part)) is not None:
                part, path, why = inner_part, f"{path}.{step}" if path else step, inner
                break
        else:
            break
    return path, part, why


def _moved(value: Any) -> Any:
    """``value``, a part of a schema, with what refers to places in the whole referring to them in ``$defs/root``."""
    if isinstance(value, list):
        return [_moved(item) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item) for key, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#/$defs/root{reference[1:]}"
    return moved


def _short(error: GrammarError) -> str:
    """The reason in one line; parsers of regular expressions draw pictures before they say it."""
    text = str(error)
    text = text.rpartition("\nerror: ")[2] if "\nerror: " in text else text
    text = " ".join(text.split())
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."
