"""docs/modules.md says what the docstrings say."""

import importlib.util

from imports_of import ROOT


def test_the_page_of_modules_is_current() -> None:
    spec = importlib.util.spec_from_file_location("tool_modules", ROOT / "tools" / "modules.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert (ROOT / "docs" / "modules.md").read_text() == tool.page(), "`make format` writes docs/modules.md anew"
