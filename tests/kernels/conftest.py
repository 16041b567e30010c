"""What tests of kernels share."""

import os
import sys

import pytest
from kernel_device import generator  # noqa: F401 -- a fixture
from triton_interpreter import patch_once_a_launch


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton" in sys.modules:
        patch_once_a_launch(monkeypatch)
