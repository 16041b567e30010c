"""Settings that must stand before torch and Triton are imported."""

import os

# Tests share their cores; threads that spin at barriers while another process holds their core cost tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores by processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Kernels then run in Triton's interpreter, on CPU tensors; triton.jit decides when a kernel's module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
