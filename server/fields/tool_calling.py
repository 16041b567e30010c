"""What one chat request does with its tools: what the template shows, what binds the answer, how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import Grammar
from ladle.server.fields.conversation import Spelling
from ladle.server.fields.form import FormFields
from ladle.server.fields.grammar_compiling import Aside, AskedGrammar, compile_grammar
from ladle.server.fields.output_format import grammar_of
from ladle.server.fields.schema_binding import bind_schema
from ladle.server.serving import Serving
from ladle.server.tools.custom_tools import CustomTool
from ladle.server.tools.formats import KNOWN, ToolFormat, calls_grammar, format_of
from ladle.server.tools.parser import ToolParser
from ladle.server.tools.schemas import NO_ARGUMENTS, Tool

# The pattern of an input is what a request calls the definition of its grammar.
_PATTERNS = Spelling(
    {
        r"(tools\[\d+\]\.custom\.format)\.properties\.input(\.pattern)?": r"\1.grammar.definition",
        r"(tools\[\d+\]\.format)\.properties\.input(\.pattern)?": r"\1.definition",
    }
)


@dataclass(frozen=True)
class ToolCalling:
    """The tools that an answer may call, at least one.

    Attributes:
        several: whether it may hold more calls than one; not where a function is named.
        required: whether it is calls and nothing else.
        named: the only one that may be called.
    """

    style: ToolFormat
    tools: tuple[Tool | CustomTool, ...]
    several: bool
    required: bool
    named: str | None = None

    @classmethod
    def of(cls, serving: Serving, body: FormFields) -> ToolCalling | None:
        """None without tools. Raises InputError where the base's chat template has none."""
        if not body.offered:
            return None
        style = format_of(serving.engine.tokenizer)
        if style is None:
            reason = f"the base's chat template shows no tools, or is not {KNOWN}"
            raise InputError("tools", [tool.function.name for tool in body.offered], reason=reason)
        choice = body.tool_choice
        named = None if choice is None else choice.name
        required = choice is not None and choice.mode == "required"
        several = body.parallel_tool_calls is not False and named is None
        if not required and not body.binds:
            _require_free(body)
        return cls(style, tuple(body.offered), several, required, named)

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """The tools as the chat template takes them."""
        return [tool.definition() for tool in self.tools]

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends the answer after its first call, where it may hold only one."""
        return () if self.several or not self.style.closing else (self.style.closing,)

    def parser(self) -> ToolParser:
        """A parser of one answer."""
        names = frozenset(tool.function.name for tool in self.tools if self.named in (None, tool.function.name))
        custom = frozenset(tool.function.name for tool in self.tools if isinstance(tool, CustomTool))
        return ToolParser(self.style, names, self.several, self.required, custom)

    async def grammar(self, serving: Serving, body: FormFields, aside: Aside) -> Grammar | None:
        """What the answer must follow; None where the model decides. Raises InputError, ApiError."""
        required = body.tool_choice is not None and body.tool_choice.mode == "required"
        if not required and not body.binds:
            return None
        with _PATTERNS.applied():
            return await compile_grammar(serving, lambda: self._asked(body), aside)

    def _asked(self, body: FormFields) -> AskedGrammar | None:
        """Raises InputError."""
        choice = body.tool_choice
        required = choice is not None and choice.mode == "required"
        answer = body.output_grammar()
        if not required:
            if answer is None:
                return None
            if body.structured_outputs is not None:
                reason = "it cannot stand beside tools that the model may call; use tool_choice none or required"
                raise InputError("structured_outputs", answer[0].text, reason=reason)
        names = {tool.function.name for tool in self.tools}
        functions, parts = [], []
        for index, tool in enumerate(body.tools or ()):
            function, field = tool.function, tool.field(index)
            if function.name not in names or (choice is not None and choice.name not in (None, function.name)):
                continue
            schema = function.parameters or NO_ARGUMENTS
            schema = bind_schema(schema, field)
            if schema.get("type", "object") != "object":
                raise InputError(field, schema, "the schema of an object")
            functions.append((function.name, {**schema, "type": "object"}))
            parts.append((field, functions[-1][1]))
        other = None if required or body.response_format is None else body.response_format.answer_schema()
        if other is not None:
            parts.append((other[1], other[0]))
        spec = calls_grammar(self.style, functions, self.several, None if other is None else other[0])
        return AskedGrammar(spec, "tools", parts)


def _require_free(body: FormFields) -> None:
    """Raise InputError for a custom tool with a grammar, where no grammar of the answer would hold calls to it."""
    for index, tool in enumerate(body.tools or ()):
        if isinstance(tool, CustomTool) and tool.bound_by is not None and tool in body.offered:
            reason = "a grammar binds calls that must be made: send tool_choice required, or one that names a tool"
            raise InputError(tool.field(index), tool.bound_by, reason=reason)


async def answer_grammar(
    serving: Serving, body: FormFields, calling: ToolCalling | None, aside: Aside
) -> Grammar | None:
    """What the answer to a chat must follow, with tools and without. Raises InputError, ApiError."""
    if calling is None:
        return await grammar_of(serving, body, aside)
    return await calling.grammar(serving, body, aside)
