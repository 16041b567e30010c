"""Settings that must stand before torch and Triton are imported."""

import gc
import os

# Tests share their cores; threads that spin at barriers while another process holds their core cost tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores by processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from seeds import fresh_seed

# How long it takes to draw something says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

if not torch.cuda.is_available():
    # Kernels then run in Triton's interpreter, on CPU tensors; triton.jit decides when a kernel's module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def seed() -> int:
    """A fresh seed a run; set LADLE_TEST_SEED to the one that a failure printed to see it again."""
    return fresh_seed()


@pytest.fixture(autouse=True)
def _global_generators() -> None:
    """What is drawn without a generator of its own depends on the seed too, and not on the tests that ran before."""
    seed = fresh_seed()
    random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Packages and tests stay to the end: Python looks through them for rings of objects neither while they come nor
    later, which takes a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
