"""Families for the tests of guidance."""

from pathlib import Path

import numpy as np
import pytest
from guided_families import guided_family
from tiny_models import OBJECTIVES, write_family
from transformers.utils import logging

from ladle.merging.family.family import Family, load_family

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of three objectives with backbones and policies, one of them a full checkpoint."""
    extra = '[presets.cheerful]\nmethod = "rewarded_soup"\npreference = { positive = 1.0 }\nstrength = 0.5\n'
    return write_family(tmp_path_factory.mktemp("three"), n=3, full=("only-simple",), extra=extra)


@pytest.fixture(scope="session")
def family(root: Path) -> Family:
    return load_family(root)


@pytest.fixture(scope="session")
def guided(family: Family) -> Family:
    """The family with everything that guidance asks for."""
    return guided_family(family)


@pytest.fixture
def mu(seed: int) -> dict[str, float]:
    """A preference with weight on every objective."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(3)).tolist()
    return dict(zip(OBJECTIVES, weights, strict=True))
