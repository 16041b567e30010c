"""How models write calls of functions: what their chat template tells them to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ladle.server.engine.requests.grammar import GrammarSpec, json_options


@dataclass(frozen=True)
class ToolFormat:
    """One way of writing calls.

    Attributes:
        opening, closing: around every call; empty where a call is the whole text.
        arguments: the key of a call's arguments; its other key is ``name``.
        between: what stands between two calls; None where models make one at a time.
    """

    opening: str
    closing: str
    arguments: str
    between: str | None


HERMES = ToolFormat("<tool_call>", "</tool_call>", "arguments", "\n")
LLAMA = ToolFormat("", "", "parameters", None)
KNOWN = "one that writes calls as Hermes and Qwen do (<tool_call>) or as Llama 3 does (name and parameters as JSON)"


def format_of(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """How the model of ``tokenizer`` writes calls; None where its chat template has no tools, or another format."""
    if not tokenizer.chat_template:
        return None
    try:
        # A model may have a template of its own for tools.
        template = tokenizer.get_chat_template(tools=[{}])
    except ValueError:
        return None
    return _format(template)


@lru_cache(maxsize=8)
def _format(template: str) -> ToolFormat | None:
    if not re.search(r"\btools\b", template):
        return None
    if HERMES.opening in template:
        # Others put XML between the same tags.
        return None if "<function=" in template or "<arg_key>" in template else HERMES
    return LLAMA if re.search(r"""["']parameters\\?["']""", template) and "ipython" in template else None


def calls_grammar(
    style: ToolFormat, functions: Sequence[tuple[str, dict[str, Any]]], parallel: bool, answer: dict[str, Any] | None
) -> GrammarSpec:
    """Calls of ``functions`` (name, schema of its arguments): one, or with ``parallel`` several where models write
    several. ``answer``: the schema of what may come instead of calls."""
    start = "call"
    if parallel and style.between is not None:
        start = f"call ({json.dumps(style.between)} call)*"
    lines = [f"start: {start}" if answer is None else f"start: {start} | answer"]
    lines.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    opening, closing = (f"{style.opening}\n", f"\n{style.closing}") if style.opening else ("", "")
    for index, (name, schema) in enumerate(functions):
        before = f'{opening}{{"name": {json.dumps(name)}, "{style.arguments}": '
        lines.append(f"call_{index}: {json.dumps(before)} arguments_{index} {json.dumps('}' + closing)}")
        lines.append(f"arguments_{index}: %json {json.dumps({**schema, 'x-guidance': json_options()})}")
    if answer is not None:
        lines.append(f"answer: %json {json.dumps({**answer, 'x-guidance': json_options()})}")
    return GrammarSpec("lark", "\n".join(lines))
