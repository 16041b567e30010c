"""What one chat request does with its tools: what the template shows, what binds the answer, how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ladle.merging.errors import InputError
from ladle.server.engine.requests.grammar import Grammar
from ladle.server.fields.output_format import check_schema, compile_grammar, grammar_of
from ladle.server.openai.requests import ChatCompletionRequest
from ladle.server.serving import Serving
from ladle.server.tools.formats import KNOWN, ToolFormat, calls_grammar, format_of
from ladle.server.tools.parser import ToolParser
from ladle.server.tools.schemas import NO_ARGUMENTS, Tool


@dataclass(frozen=True)
class ToolCalling:
    """The tools that an answer may call, at least one."""

    style: ToolFormat
    tools: tuple[Tool, ...]
    several: bool

    @classmethod
    def of(cls, serving: Serving, body: ChatCompletionRequest) -> ToolCalling | None:
        """None without tools. Raises InputError where the base's chat template has none."""
        if not body.offered:
            return None
        style = format_of(serving.engine.tokenizer)
        if style is None:
            allowed = f"nothing, because the base's chat template shows no tools, or is not {KNOWN}"
            raise InputError("tools", [tool.function.name for tool in body.offered], allowed)
        return cls(style, tuple(body.offered), body.parallel_tool_calls is not False)

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """As the chat template takes them."""
        return [tool.definition() for tool in self.tools]

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends the answer after its first call, where it may hold only one."""
        return () if self.several or not self.style.closing else (self.style.closing,)

    def parser(self) -> ToolParser:
        """For one answer."""
        return ToolParser(self.style, frozenset(tool.function.name for tool in self.tools), self.several)

    async def grammar(self, serving: Serving, body: ChatCompletionRequest) -> Grammar | None:
        """What the answer must follow; None where the model decides. Raises InputError."""
        choice = body.tool_choice
        required = choice is not None and choice.mode == "required"
        answer = body.output_grammar()
        if not required:
            if answer is None:
                return None
            if body.structured_outputs is not None:
                allowed = "nothing beside tools that the model may call; tool_choice none or required, or no tools"
                raise InputError("structured_outputs", answer[0].text, allowed)
        functions = []
        for index, tool in enumerate(body.tools or ()):
            function, field = tool.function, f"tools[{index}].function.parameters"
            if choice is not None and choice.name not in (None, function.name):
                continue
            schema = function.parameters or NO_ARGUMENTS
            check_schema(schema, field)
            if schema.get("type", "object") != "object":
                raise InputError(field, schema, "the schema of an object")
            functions.append((function.name, {**schema, "type": "object"}))
        other = None if required or body.response_format is None else body.response_format.answer_schema()
        spec = calls_grammar(self.style, functions, self.several, None if other is None else other[0])
        return await compile_grammar(serving, spec, "tools")


async def answer_grammar(serving: Serving, body: ChatCompletionRequest, calling: ToolCalling | None) -> Grammar | None:
    """What the answer to a chat must follow, with tools and without. Raises InputError."""
    return await grammar_of(serving, body) if calling is None else await calling.grammar(serving, body)
