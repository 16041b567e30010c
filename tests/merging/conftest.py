"""What the tests of merging share."""

import os

import pytest
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture
def seed() -> int:
    """A fresh seed for every test; set LADLE_TEST_SEED to the one that a failure printed to see it again."""
    drawn = int(os.environ.get("LADLE_TEST_SEED") or int.from_bytes(os.urandom(3)))
    print(f"LADLE_TEST_SEED={drawn}")
    return drawn
