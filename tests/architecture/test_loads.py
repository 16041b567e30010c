"""Nothing of a library is loaded outside of the one lock for loads: two at once break the process for good."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LOADS = ("from_pretrained", "from_config", "_from_config")


def loads(tree: ast.AST, held: bool = False) -> list[tuple[int, bool]]:
    """(line, whether it holds the lock) of every call of ``_LOADS``."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = held
        if isinstance(node, ast.With):
            inside = held or any(
                isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "loading"
                for item in node.items
            )
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            inside = False  # it may be called at any time
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOADS:
            found.append((node.lineno, inside))
        found += loads(node, inside)
    return found


@pytest.mark.parametrize("room", ["merging", "guidance", "server", "recipes"])
def test_loads_hold_the_lock(room: str) -> None:
    wrong, seen = [], 0
    for path in (ROOT / room).rglob("*.py"):
        for line, held in loads(ast.parse(path.read_text())):
            seen += 1
            if not held:
                wrong.append(f"{path.relative_to(ROOT)}:{line}")
    assert not wrong, "\n".join(wrong)
    assert seen >= 1


def test_the_scan_sees_what_it_should() -> None:
    source = "with loading('x'):\n    A.from_pretrained()\n    def f():\n        A.from_config()\nB.from_pretrained()\n"
    assert loads(ast.parse(source)) == [(2, True), (4, False), (5, False)]
