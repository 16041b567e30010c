"""One browser and one server for all tests of the page; skipped where no Chromium is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from chromium import chromium, requested
from live_server import served
from playground_folder import write_playground_family
from playground_view import Page
from seeds import fresh_seed

from ladle.server.run import Service


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_playground_family(tmp_path_factory.mktemp("playground") / "family", fresh_seed() % 1000)


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="package")
def running(browser: Any, folder: Path) -> Iterator[tuple[str, Service]]:
    with served(folder) as found:  # after the browser, so that nothing is loaded where there is none
        yield found


@pytest.fixture
def url(running: tuple[str, Service]) -> str:
    return running[0]


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    page = Page(browser)
    page.complaints()
    requested(browser)
    yield page
    browser.get("about:blank")
    for asked in requested(browser):
        assert urlsplit(asked).hostname == "127.0.0.1", f"{asked} is another host's"
