"""Servers for other people's clients: real processes over a tiny family that is named and shaped like the demo's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from guided_folder import write_guided_family
from server_process import Server, serve_family
from tiny_models import rewrite_json
from tool_templates import HERMES_TEMPLATE

PRESETS = """
[presets.cheerful]
method = "bone_soup"
preference = { positive = 1.0 }
"""
CONTEXT = 8192  # tokens; an answer of that many takes seconds, so that there is something to abandon


def write_demo(folder: Path) -> Path:
    """The demo's name, objectives and methods over random weights."""
    root = write_guided_family(folder, "llama", seed=11, n=3, max_position_embeddings=CONTEXT)
    rewrite_json(root / "amateur" / "config.json", max_position_embeddings=CONTEXT)
    manifest = root / "family.toml"
    text = manifest.read_text(encoding="utf-8").replace('name = "tiny"', 'name = "demo"', 1)
    manifest.write_text(text + PRESETS, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("conformance") / "demo")


@pytest.fixture(scope="session")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose base has a chat template with tools."""
    folder = write_demo(tmp_path_factory.mktemp("tools") / "demo")
    for config in folder.rglob("tokenizer_config.json"):
        config.with_name("chat_template.jinja").write_text(HERMES_TEMPLATE, encoding="utf-8")
    with serve_family(folder, "--kv-memory", "24MiB", "--default-max-tokens", "64") as running:
        yield running


@pytest.fixture(scope="session")
def server(demo_folder: Path) -> Iterator[Server]:
    """A server with its defaults, but for a KV pool of a tiny model's size, and answers of a length for it."""
    with serve_family(demo_folder, "--kv-memory", "24MiB", "--default-max-tokens", "64") as running:
        yield running
