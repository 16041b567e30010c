"""A tiny family for all tests of the server, and the double of its engine."""

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from tiny_models import write_family

from ladle.merging.family import Family, load_family

PRESETS = """
[presets.cheerful]
method = "bone_soup"
preference = { positive = 1.0 }
[presets.plain]
method = "base"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), "llama", seed=5, extra=PRESETS)


@pytest.fixture(scope="session")
def family(family_folder: Path) -> Family:
    return load_family(family_folder)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()
