"""One row per steering option: every place that lists the options follows from the table, or is compared with it."""

import ast
import inspect
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from imports_of import imports

from ladle.clients import completion
from ladle.clients.payload import Options
from ladle.clients.stream import Stream
from ladle.guidance.plan import Steering
from ladle.guidance.registry import METHODS
from ladle.merging.exceptions import InputError
from ladle.merging.family.manifest_tables import Preset
from ladle.option_kinds import Count, Kind, Number, Objects, OneOf, Record, Weights
from ladle.server.app import build_app
from ladle.server.routes.playground import assets
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState
from ladle.steering_options import OPTIONS, UNIVERSAL, WHOLE

ROOT = Path(__file__).resolve().parents[2]
OWN_CONTROLS = {"method", "preference", "target", "strength", "trace", "rank"}
# The page's sliders say one preference: a schedule is several of those. What watches answers is the family's to say
# there.
NOT_IN_THE_PAGE = {"schedule", "monitor"}


@cache
def schema_of_steering() -> dict[str, Any]:
    document = build_app(ServerState(ServerSettings())).openapi()["components"]["schemas"]
    parts = document["GenerateRequest"]["properties"]["steering"]["anyOf"]
    found: dict[str, Any] = next(part for part in parts if part.get("type") == "object")
    return found


def tried(kind: Kind) -> list[Any]:
    """Values about the bounds of ``kind``, of its form, and of others."""
    values: list[Any] = ["x", "", 0, 1, -1, 0.5, 1.0, True, [], {}, [{}], {"x": 1}, 10**400, [{"a": 1}] * 2]
    if isinstance(kind, OneOf):
        values += kind.names
    if isinstance(kind, Count):
        values += [kind.most, (kind.most or 7) + 1]
    if isinstance(kind, Number):
        values += [kind.least, kind.most, kind.least - 1, kind.most + 1, (kind.least + kind.most) / 2]
    if isinstance(kind, (Objects, Record, Weights)):
        values.append(json.loads(kind.example))
    if isinstance(kind, Objects) and kind.most:
        values += [[{}] * kind.most, [{}] * (kind.most + 1)]
    return [value for value in values if value is not None]


@pytest.mark.parametrize("name", OPTIONS)
def test_request_schema_and_preset_accept_the_same(name):
    schema = schema_of_steering()["properties"][name]
    option = OPTIONS[name]
    assert schema["description"] == option.text and option.text[0].isupper() and option.text.endswith(".")
    validator = jsonschema.Draft202012Validator(schema)
    accepted = 0
    for value in tried(option.kind):
        try:
            Steering.parse({name: value})
            taken = True
        except InputError as error:
            taken = False
            assert error.field.startswith(f"steering.{name}") and error.allowed
        # What an entry of an object or a list means is judged with the family at hand.
        stated = {"x": 1} if isinstance(option.kind, Weights) and isinstance(value, dict) else value
        whole = isinstance(value, float) and value == 1.0 and isinstance(option.kind, Count)  # JSON's 1.0 is an integer
        if not whole:
            assert validator.is_valid(stated) == taken, value
        accepted += taken
        if taken and option.preset:
            assert Preset.model_validate({name: value}).steering() == {name: value}
    assert accepted and validator.is_valid(None) and Steering.parse({name: None}) == Steering()


def test_every_place_has_every_option():
    assert list(schema_of_steering()["properties"]) == list(OPTIONS)
    assert set(Preset.model_fields) == {name for name, option in OPTIONS.items() if option.preset} | {"sampling"}
    script = assets()["steering_options.js"].body.decode()
    controls = json.loads(script[script.index("{") : script.rindex(";")])
    assert set(controls) | OWN_CONTROLS | NOT_IN_THE_PAGE == set(OPTIONS)
    assert {name: control["hint"] for name, control in controls.items()} == {
        name: OPTIONS[name].text for name in controls
    }
    assert set().union(*(method.options for method in METHODS.values())) | UNIVERSAL | {"schedule"} == set(OPTIONS)
    guide = (ROOT / "docs" / "guidance.md").read_text()
    assert not [name for name in OPTIONS if not re.search(rf"`{name}[`:]", guide)]


def test_what_the_sdk_names_is_in_the_table():
    """Its own arguments are the options that most requests state; all others pass through ``steering``."""
    assert {name for name in Options.__annotations__ if name in OPTIONS} == {
        "preference", "target", "method", "strength", "trace", "rank", "search", "monitor",
    }  # fmt: skip
    turned = set(inspect.signature(Stream.steer).parameters) - {"self", "steering"}
    assert turned <= set(OPTIONS) - set(WHOLE)


def test_a_shell_completes_options_and_their_choices():
    assert completion.steering("") == sorted(f"{name}=" for name in OPTIONS)
    assert completion.steering("norm") == ["normalize="] and completion.steering("normalize=n") == [
        "normalize=none", "normalize=norm",
    ]  # fmt: skip
    assert completion.steering("trace=") == ["trace=false", "trace=true"] and completion.steering("x=") == []


def test_nothing_else_lists_the_options():
    """A second list is one that somebody will forget. Most of the options as texts or fields in one file is a list."""
    lists = {}
    for room in ("clients", "guidance", "merging", "recipes", "server"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix == ".py":
                nodes = list(ast.walk(ast.parse(path.read_text())))
                texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
                texts |= {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
            elif path.suffix == ".js":
                texts = set(re.findall(r"[\"'](\w+)[\"']", path.read_text()))
            else:
                continue
            named = texts & set(OPTIONS)
            if 3 * len(named) > 2 * len(OPTIONS):
                lists[str(path.relative_to(ROOT))] = named
    assert not lists


def test_the_table_can_be_read_from_every_room():
    own = ("ladle.option_kinds", "ladle.nulls")
    for path in (ROOT / "package").glob("*.py"):
        outside = {module for _, module in imports(path) if not module.startswith(own)}
        assert not {module for module in outside if module.partition(".")[0] in ("ladle", "pydantic", "torch")}
