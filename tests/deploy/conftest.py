"""A tiny family, for the application that manifests are compared with."""

from pathlib import Path

import pytest
from tiny_models import write_family

from ladle.merging.family.family import Family, load_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder: Path = write_family(tmp_path_factory.mktemp("family"), "llama", seed=5)
    return load_family(folder)
