"""The documentation site, as far as it can be checked without building it; `make site` does that."""

import importlib.util
import re
from importlib import import_module

from imports_of import ROOT


def _tool():
    spec = importlib.util.spec_from_file_location("tool_site_pages", ROOT / "tools" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_links_lead_to_pages_of_the_site() -> None:
    site = _tool()
    text = "[a](../guidance/plan.py) [b](../README.md#use-it) [c](kernels.md) [d](../guidance) [e](https://host/x)\n"
    assert site.for_the_site("docs/structures.md", text) == (
        "[a](source/guidance/plan.py.md) [b](index.md#use-it) [c](kernels.md) [d](source/guidance/index.md) "
        "[e](https://host/x)"
    )
    assert site.for_the_site("studies/control/README.md", "[a](../../docs/control.md) ![b](test/front.svg)") == (
        "[a](../../control.md) ![b](test/front.svg)"
    )
    fenced = "```\n[a](../guidance/plan.py)\n```"
    assert site.for_the_site("docs/structures.md", fenced) == fenced


def test_every_document_is_the_page_of_its_path() -> None:
    site = _tool()
    documents = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "studies" / "control" / "README.md"]
    for path in (str(document.relative_to(ROOT)) for document in documents):
        assert site.path_of(site.page_of(path)) == path


def test_lists_are_set_apart_and_indented_for_python_markdown() -> None:
    site = _tool()
    text = "Text\n1. one\n   more\n\n   ```\n   x\n   ```\n2. two\n   - inner\n\nEnd"
    assert site.for_the_site("docs/a.md", text) == (
        "Text\n\n1. one\n    more\n\n    ```\n    x\n    ```\n\n2. two\n    - inner\n\nEnd"
    )


def test_every_page_is_in_the_navigation_and_every_reference_exists() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"- {page.relative_to(ROOT / 'docs')}\n" in settings, page.name
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            module, _, member = name.rpartition(".")
            assert hasattr(import_module(module), member) or import_module(name), name


def test_every_method_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api" / "methods.md").read_text()
    named = set(re.findall(r"^::: ladle[.]guidance[.]methods[.](\w+)$", page, re.MULTILINE))
    assert named == {file.stem for file in (ROOT / "guidance" / "methods").glob("*.py")} - {"__init__"}
