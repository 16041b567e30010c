"""Write docs/modules.md: every package and module with the first sentence of its docstring.

    python tools/modules.py            # `make format` does it; a test compares

What a module is for is said in one place, its docstring, and this page follows.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modules.md"
ROOMS = ("package", "kernels", "merging", "guidance", "server/engine", "server", "clients", "recipes", "benchmarks")
HEAD = """# Every module

One line per module: the first sentence of its docstring. [structures.md](structures.md) tells how they work together.
`make format` writes this page anew.
"""


def sentence(path: Path) -> str:
    """The first sentence of a module's docstring, in one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    match = re.match(r"(.+?[.:])(?= [A-Z`]|$)", text)
    return (match[1] if match else text).rstrip(":").replace("|", "\\|")


def packages() -> list[Path]:
    """Every folder with modules, as a path relative to the repository, in the order of the page."""
    folders: list[Path] = []
    for room in ROOMS:
        inner = [ROOT / other for other in ROOMS if other.startswith(room + "/")]
        for file in sorted((ROOT / room).rglob("__init__.py")):
            folder = file.parent
            if not any(folder.is_relative_to(other) for other in inner):
                folders.append(folder.relative_to(ROOT))
    return folders


def page() -> str:
    """The text of docs/modules.md."""
    lines = [HEAD]
    for package in packages():
        folder = ROOT / package
        lines += [f"## {package}", sentence(folder / "__init__.py"), "", "| module | what it is |", "|---|---|"]
        for file in sorted(folder.glob("*.py")):
            if file.name != "__init__.py":
                lines.append(f"| [{file.stem}](../{package}/{file.name}) | {sentence(file)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
