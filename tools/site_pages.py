"""Pages of the documentation site that lie outside docs/, and links to them: a hook of mkdocs, see mkdocs.yml.

The documents link to each other and to sources by their paths in the repository, which is what a reader of the
repository needs. In the site, README and the other documents of the root are pages, a source that some document links
to is a page with its text, and a folder is a page with a table of its modules.
"""

import importlib.util
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ASSETS = (".png", ".svg")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".js": "javascript"}
_FENCE = re.compile(r" *(```+|~~~+)")
_LINK = re.compile(r"(\]\()(?!\w+:)([^)#\s]+)(#[^)\s]*)?(\))")
_ITEM = re.compile(r"( *)([-*+]|\d+\.) ")


def page_of(path: str) -> str:
    """The page, or asset, of the site that stands for a path of the repository ("" for the repository itself)."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path.endswith((".md", *ASSETS)):
        return path
    return posixpath.join("source", path, "index.md") if (ROOT / path).is_dir() else f"source/{path}.md"


def path_of(page: str) -> str:
    """The path in the repository of a page that is a document; the inverse of ``page_of``."""
    if page == "index.md":
        return "README.md"
    return f"docs/{page}" if (ROOT / "docs" / page).exists() else page


def prose(markdown: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it is prose) for every line; what stands in a fence is not."""
    fence = ""
    for line in markdown.splitlines():
        match = _FENCE.match(line)
        if match and not fence:
            fence = match[1]
            yield line, False
        elif fence:
            if match and match[1].startswith(fence):
                fence = ""
            yield line, False
        else:
            yield line, True


def targets(path: str, markdown: str) -> Iterator[str]:
    """The paths in the repository that the document ``path`` links to."""
    for line, is_prose in prose(markdown):
        if is_prose:
            for match in _LINK.finditer(line):
                yield posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))


def indented(markdown: str) -> Iterator[tuple[str, bool]]:
    """As ``prose``, with lists as Python-Markdown wants them: a blank line before the first item, and what belongs to
    an item four spaces further in than the item, where the documents have it below the item's text."""
    paragraph = True  # what went before is no item's first paragraph
    offsets: list[int] = []  # where the text of the open items begins, from the outermost one
    blank = True
    for line, is_prose in prose(markdown):
        item = _ITEM.match(line) if is_prose else None
        indent = len(line) - len(line.lstrip(" "))
        # A line that is not indented and follows text goes on with that text, if it is no item itself.
        if line.strip() and (item or blank or indent):
            offsets = [offset for offset in offsets if offset <= indent]
        depth = len(offsets)
        if item:
            if not blank and paragraph:
                yield "", True
            offsets.append(len(item[0]))
            paragraph = False
        elif blank or not offsets:
            paragraph = True
        inner = offsets[depth - 1] if depth else 0
        moved = " " * (4 * depth + max(indent - inner, 0)) + line.lstrip(" ") if line.strip() else ""
        yield moved if offsets else line, is_prose
        blank = not line.strip()


def for_the_site(path: str, markdown: str) -> str:
    """The document ``path`` with links to pages of the site, and lists as Python-Markdown wants them."""
    here = posixpath.dirname(page_of(path)) or "."

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return f"{match[1]}{posixpath.relpath(page_of(target), here)}{match[3] or ''}{match[4]}"

    return "\n".join(_LINK.sub(link, line) if is_prose else line for line, is_prose in indented(markdown))


def source_page(path: str) -> str:
    """A page with the text of a source file."""
    language = LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"{_HIDDEN}# {path}\n\n~~~~~~~~ {language}\n{(ROOT / path).read_text().rstrip()}\n~~~~~~~~\n"


def folder_page(path: str, sentence: ModuleType) -> str:
    """A page with the files of a folder, and what the modules among them are for."""
    lines = [f"{_HIDDEN}# {path}/", "", "| file | what it is |", "|---|---|"]
    for entry in entries(path):
        inner = f"{path}/{entry.name}"
        if entry.is_dir():
            about = sentence.sentence(entry / "__init__.py") if (entry / "__init__.py").exists() else ""
            lines.append(f"| {entry.name}/ | {about} |")
        elif entry.suffix == ".py":
            link = posixpath.relpath(page_of(inner), f"source/{path}")
            lines.append(f"| [{entry.name}]({link}) | {sentence.sentence(entry)} |")
        else:
            lines.append(f"| {entry.name} | |")
    return "\n".join(lines) + "\n"


def entries(path: str) -> list[Path]:
    """What lies in a folder of the repository, without what is hidden or made by Python."""
    return sorted(entry for entry in (ROOT / path).iterdir() if not entry.name.startswith((".", "__pycache__")))


_HIDDEN = "---\nsearch:\n  exclude: true\n---\n"


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_startup(command: str, dirty: bool) -> None:
    """Lay the package out where the reference is read from, before mkdocstrings looks for that folder."""
    tree = ROOT / "build" / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    _tool("typecheck").lay_out(tree)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the documents of the root, and every file and folder that a document links to."""
    from mkdocs.structure.files import File

    documents = {path_of(file.src_uri): file.content_string for file in files.documentation_pages()}
    waiting = [file.name for file in ROOT.glob("*.md")]
    waiting += [target for path, text in documents.items() for target in targets(path, text)]
    known = set(documents)
    modules = _tool("modules")
    while waiting:
        path = waiting.pop()
        full = ROOT / path
        # What does not exist stays a link that mkdocs warns of.
        if path in known or path.startswith("docs/") or not full.exists() or not full.is_relative_to(ROOT):
            continue
        known.add(path)
        if path.endswith(ASSETS):
            files.append(File.generated(config, page_of(path), abs_src_path=os.fspath(full)))
            continue
        if path.endswith(".md"):
            content = full.read_text()
            waiting += targets(path, content)
        elif full.is_dir():
            content = folder_page(path, modules)
            waiting += [f"{path}/{entry.name}" for entry in entries(path) if entry.suffix == ".py"]
        else:
            content = source_page(path)
        files.append(File.generated(config, page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Make the links of a document lead to pages of the site."""
    uri = page.file.src_uri
    return markdown if uri.startswith("source/") else for_the_site(path_of(uri), markdown)
