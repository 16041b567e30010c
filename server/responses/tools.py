"""``tools`` of the Responses API: functions, by themselves and in namespaces, custom tools, and searches of the web
beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from ladle.server.fields.known_fields import Defaults, with_known
from ladle.server.http.kinds import OF_KINDS, only_kinds
from ladle.server.http.strict_json import finite_object
from ladle.server.http.strict_model import StrictModel
from ladle.server.tools.custom_tools import CustomBody, CustomTool, GrammarDefinition, GrammarInput, TextInput
from ladle.server.tools.schemas import FUNCTION_NAME, MAX_TOOLS, Function, Tool
from ladle.server.tools.searches import OF_TOOLS, WebSearchTool, only_tools, require_beside

_TOOL: Defaults = {
    "allowed_callers": (["direct"],), "async": (False,), "defer_loading": (False,), "output_schema": (),
}  # fmt: skip
_CUSTOM: Defaults = {name: _TOOL[name] for name in ("allowed_callers", "async", "defer_loading")}

if TYPE_CHECKING:  # mypy cannot see through create_model
    from ladle.server.http.strict_model import StrictModel as CustomBase
    from ladle.server.http.strict_model import StrictModel as ToolBase
else:
    CustomBase = with_known(StrictModel, "CustomToolFields", _CUSTOM, ("cache_control",))
    ToolBase = with_known(StrictModel, "FunctionToolFields", _TOOL, ("cache_control", "annotations"))


class PlacedTool(Tool):
    """A tool that stands elsewhere in the request than in the list of all of them."""

    place: str

    def field(self, index: int) -> str:
        return f"{self.place}.parameters"


class FunctionTool(ToolBase):
    """An entry of ``tools``: a function of the client's."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(finite_object)] | None = Field(
        None, description="a JSON schema of an object; default: none"
    )
    strict: bool | None = None

    def tool(self, place: str, namespace: str | None = None, introduction: str | None = None) -> Tool:
        """What a conversation holds of this. ``introduction`` comes before the description."""
        texts = [text for text in (introduction, self.description) if text]
        description = "\n".join(texts) if introduction else self.description
        name = shown_name(namespace, self.name)
        function = Function.model_construct(name=name, description=description, parameters=self.parameters)
        return PlacedTool.model_construct(type="function", function=function, place=place)

    def echoed(self) -> dict[str, Any]:
        """What replies repeat of this."""
        names = ("type", "name", "description", "parameters", "strict")
        return {name: getattr(self, name) for name in names}


class NamespaceTool(StrictModel):
    """An entry of ``tools``: functions of the client's that belong together. Models are shown each by the name of both,
    and the description of all before the first one's."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    tools: Annotated[
        list[Annotated[Annotated[FunctionTool, Tag("<function>")], OF_TOOLS, only_tools("function", searches=False)]],
        Field(min_length=1, max_length=MAX_TOOLS),
    ]

    def echoed(self) -> dict[str, Any]:
        """What replies repeat of this."""
        tools = [tool.echoed() for tool in self.tools]
        return {"type": self.type, "name": self.name, "description": self.description, "tools": tools}


class PlacedCustomTool(CustomTool):
    """A custom tool that stands elsewhere in the request than in the list of all of them."""

    place: str

    def field(self, index: int) -> str:
        return f"{self.place}.format"


class StatedGrammar(GrammarDefinition):
    """A text that a grammar describes."""

    type: Literal["grammar"]


_Format = Annotated[
    Annotated[TextInput, Tag("<text>")] | Annotated[StatedGrammar, Tag("<grammar>")],
    OF_KINDS,
    only_kinds("text", "grammar"),
]


class CustomToolParam(CustomBase):
    """An entry of ``tools``: a function that takes a text."""

    type: Literal["custom"]
    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    format: _Format | None = Field(None, description="what its input looks like; default: any text")

    def tool(self, place: str) -> PlacedCustomTool:
        """What a conversation holds of this."""
        form: Any = self.format
        if isinstance(form, StatedGrammar):
            form = GrammarInput.model_construct(type="grammar", grammar=form)
        custom = CustomBody.model_construct(name=self.name, description=self.description, format=form)
        return PlacedCustomTool.model_construct(type="custom", custom=custom, place=place)

    def echoed(self) -> dict[str, Any]:
        """What replies repeat of this."""
        form = {"type": "text"} if self.format is None else self.format.model_dump()
        return {"type": self.type, "name": self.name, "description": self.description, "format": form}


AnyTool = FunctionTool | CustomToolParam | NamespaceTool | WebSearchTool
_Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")]
    | Annotated[CustomToolParam, Tag("<custom>")]
    | Annotated[NamespaceTool, Tag("<namespace>")]
    | Annotated[WebSearchTool, Tag("<web_search>")],
    OF_TOOLS,
    only_tools("function", "custom", "namespace"),
]


def _few(tools: list[AnyTool]) -> list[AnyTool]:
    functions = len(offered(tools))
    require_beside(tools, functions)
    if functions > MAX_TOOLS:
        raise ValueError(f"allowed: at most {MAX_TOOLS} functions, those of namespaces counted")
    return tools


Tools = Annotated[list[_Tool], Field(max_length=MAX_TOOLS), AfterValidator(_few)]


def shown_name(namespace: str | None, name: str) -> str:
    """What the model is shown a function as: names of functions are unique within their namespace only."""
    return name if not namespace else f"{namespace.rstrip('_')}__{name.lstrip('_')}"


def offered(tools: Sequence[AnyTool]) -> list[Tool | CustomTool]:
    """All functions and custom tools, as a conversation holds them."""
    functions: list[Tool | CustomTool] = []
    for index, tool in enumerate(tools):
        if isinstance(tool, (FunctionTool, CustomToolParam)):
            functions.append(tool.tool(f"tools[{index}]"))
        elif isinstance(tool, NamespaceTool):
            for inner, function in enumerate(tool.tools):
                introduction = tool.description if inner == 0 else None
                functions.append(function.tool(f"tools[{index}].tools[{inner}]", tool.name, introduction))
    return functions


def namespaces(tools: Sequence[AnyTool]) -> dict[str, tuple[str, str]]:
    """Functions of namespaces by what the model is shown them as: the namespace, and the name there."""
    return {
        shown_name(tool.name, function.name): (tool.name, function.name)
        for tool in tools
        if isinstance(tool, NamespaceTool)
        for function in tool.tools
    }
