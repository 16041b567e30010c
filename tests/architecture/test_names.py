"""One name, one thing: a module's name, and a class's, says in the whole project what it is."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from imports_of import ROOT

ROOMS = ("package", "kernels", "merging", "guidance", "server", "clients", "recipes", "benchmarks")
NAMED_AFTER = {
    "benchmarks": "what is measured",
    "recipes/commands": "what the command does, in a module below it",
    "server/commands": "what the command does, in a module below it",
    "server/routes": "what the endpoint shows",
    "server/replies": "what the reply shows",
    "kernels/gpu": "the operation that it is one form of",
    "kernels/reference": "the operation that it is one form of",
}
"""Folders whose modules are named after what they serve, which lies elsewhere under the same name."""


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def repeated(things: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: places for name, places in things.items() if len(places) > 1}


def test_no_two_modules_have_one_name() -> None:
    named = defaultdict(list)
    for path in (path for room in ROOMS for path in modules(room)):
        folder = str(path.parent.relative_to(ROOT))
        if path.name != "__init__.py" and folder not in NAMED_AFTER:
            named[path.name].append(str(path.relative_to(ROOT)))
    assert named
    assert not repeated(named)


def test_folders_of_names_after_others_are_there() -> None:
    assert not [folder for folder in NAMED_AFTER if not list((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("rooms", [tuple(room for room in ROOMS if room != "clients"), ("clients",)])
def test_no_two_classes_have_one_name(rooms: tuple[str, ...]) -> None:
    """The SDK apart: its classes are what the server says, and have the names that the server has for it."""
    named = defaultdict(list)
    for path in (path for room in rooms for path in modules(room)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                named[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert named
    assert not repeated(named)
