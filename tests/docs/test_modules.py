"""docs/modules.md says what the docstrings say, and docs/structures.md leads to every module."""

import importlib.util
import re

from imports_of import ROOT


def test_the_page_of_modules_is_current() -> None:
    spec = importlib.util.spec_from_file_location("tool_modules", ROOT / "tools" / "modules.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs" / "modules.md").read_text() == tool.page(), "`make format` writes docs/modules.md anew"


def test_every_module_of_the_server_is_one_link_away() -> None:
    """A link to a module, to its folder, or to the folder's list in docs/modules.md."""
    links = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "structures.md").read_text()))
    sections = re.findall(r"^## (.+)$", (ROOT / "docs" / "modules.md").read_text(), re.MULTILINE)
    anchors = {f"modules.md#{section.replace('/', '')}": f"../{section}" for section in sections}
    assert {link for link in links if link.startswith("modules.md#")} <= set(anchors)
    reached = links | {anchors[link] for link in links & set(anchors)}
    modules = [path.relative_to(ROOT) for path in (ROOT / "server").rglob("*.py")]
    far = [str(path) for path in modules if not reached & {f"../{path}", f"../{path.parent}"}]
    assert modules and not far, far
