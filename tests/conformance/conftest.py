"""Servers for other people's clients: real processes over a tiny family that is named and shaped like the demo's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance_families import write_demo, write_tool_demo
from server_process import Server, serve_family


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("conformance") / "demo")


@pytest.fixture(scope="session")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose base has a chat template with tools."""
    folder = write_tool_demo(tmp_path_factory.mktemp("tools") / "demo")
    with serve_family(folder, "--kv-memory", "24MiB", "--default-max-tokens", "64") as running:
        yield running


@pytest.fixture(scope="session")
def server(demo_folder: Path) -> Iterator[Server]:
    """A server with its defaults, but for a KV pool of a tiny model's size, and answers of a length for it."""
    with serve_family(demo_folder, "--kv-memory", "24MiB", "--default-max-tokens", "64") as running:
        yield running
