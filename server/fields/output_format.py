"""The request fields that say what an answer must look like, and the grammars they stand for."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ladle.merging.exceptions import InputError
from ladle.server.engine.grammars.grammar import Grammar, GrammarSpec
from ladle.server.fields.grammar_compiling import Aside, AskedGrammar, compile_grammar
from ladle.server.fields.known_fields import Defaults, with_known
from ladle.server.fields.schema_binding import bind_schema, ends_in_lone_backslash
from ladle.server.http.strict_model import StrictModel
from ladle.server.serving import Serving

FORMAT_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_MAX_REGEX = 20_000  # characters
_MAX_CHOICES = 1000
_MAX_CHOICE_TEXT = 200_000  # characters of all of them; the compiler manages some tens of thousands in its time
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$#&\-~/])")

Schema = Annotated[dict[str, Any], Field(description="a JSON schema")]


class JsonSchema(StrictModel):
    """``response_format.json_schema``. Name and description are labels: nothing of it is put into the prompt. The
    schema binds with ``strict`` and without."""

    name: Annotated[str, Field(pattern=FORMAT_NAME)]
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """``response_format``: free text, any JSON object, or JSON that fulfils a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            given = "none" if self.json_schema is None else self.json_schema.name
            allowed = 'a schema with type "json_schema", and with no other'
            raise InputError("response_format.json_schema", given, allowed)
        return self

    def answer_schema(self) -> tuple[dict[str, Any], str] | None:
        """The schema of the answer, as the grammar library takes it, and the field that asks for it; None for text.
        Raises InputError."""
        if self.type == "text":
            return None
        if self.json_schema is None:
            return {"type": "object"}, "response_format"
        field = "response_format.json_schema.schema"
        return bind_schema(self.json_schema.schema_, field), field


_NOT_SUPPORTED: Defaults = {
    "disable_additional_properties": (False,),
    "disable_any_whitespace": (False,),
    "grammar": (),
    "json_object": (False,),
    "structural_tag": (),
    "whitespace_pattern": (),
}

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.http.strict_model import StrictModel as OutputsBase
else:
    OutputsBase = with_known(StrictModel, "StructuredOutputsFields", _NOT_SUPPORTED, ("disable_fallback",))


class StructuredOutputs(OutputsBase):
    """``structured_outputs``, an extension that other servers have too: exactly one of a JSON schema, a regular
    expression for the whole answer, and a list of answers to choose from."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    regex: Annotated[str, Field(max_length=_MAX_REGEX)] | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=_MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [name for name in ("json", "regex", "choice") if getattr(self, _field(name)) is not None]
        if len(given) != 1:
            raise InputError("structured_outputs", given, "exactly one of json, regex and choice")
        size = sum(map(len, self.choice or ()))
        if size > _MAX_CHOICE_TEXT:
            raise InputError(
                "structured_outputs.choice",
                f"{size} characters",
                f"choices of at most {_MAX_CHOICE_TEXT} characters together",
            )
        return self


def _field(name: str) -> str:
    return "json_" if name == "json" else name


class OutputFields(StrictModel):
    """What the generating endpoints have in common here."""

    response_format: ResponseFormat | None = Field(None, description="what the answer looks like; it always does")
    structured_outputs: StructuredOutputs | None = Field(None, description="extension: a regex or a choice")

    @model_validator(mode="after")
    def _one_of_both(self) -> OutputFields:
        other = self.response_format is not None and self.response_format.type != "text"
        if self.structured_outputs is not None and other:
            reason = "it cannot stand beside a response_format of another type than text"
            raise InputError("structured_outputs", "a grammar", reason=reason)
        return self

    @property
    def binds(self) -> bool:
        """Whether the answer has a form."""
        return self.structured_outputs is not None or (
            self.response_format is not None and self.response_format.type != "text"
        )

    def output_grammar(self) -> tuple[GrammarSpec, str] | None:
        """The grammar of the answer and the field that asks for it; None for free text.

        Raises:
            InputError: a schema with a keyword that is none, or with numbers that cannot be kept exactly.
        """
        shaped = None if self.response_format is None else self.response_format.answer_schema()
        if shaped is not None:
            return GrammarSpec.json_schema(shaped[0]), shaped[1]
        asked = self.structured_outputs
        if asked is None:
            return None
        if asked.json_ is not None:
            schema = bind_schema(asked.json_, "structured_outputs.json")
            return GrammarSpec.json_schema(schema), "structured_outputs.json"
        if asked.regex is not None:
            if ends_in_lone_backslash(asked.regex):
                allowed = "a regular expression that does not end in a lone backslash"
                raise InputError("structured_outputs.regex", asked.regex, allowed)
            return GrammarSpec("regex", asked.regex), "structured_outputs.regex"
        alternatives = "|".join(_SPECIAL.sub(r"\\\1", choice) for choice in asked.choice or ())
        return GrammarSpec("regex", f"(?:{alternatives})"), "structured_outputs.choice"


async def grammar_of(serving: Serving, fields: OutputFields, aside: Aside) -> Grammar | None:
    """What the answer to a request must follow. Raises InputError, ApiError."""

    def ask() -> AskedGrammar | None:
        asked = fields.output_grammar()
        if asked is None:
            return None
        spec, field = asked
        return AskedGrammar(spec, field, [(field, json.loads(spec.text))] if spec.kind == "json_schema" else [])

    return await compile_grammar(serving, ask, aside) if fields.binds else None
