"""What a compiled decoder layer takes: its weights, and the rows of a step. Arrays only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]
"""float16 bit patterns."""
Places = NDArray[np.int64]


class Product(NamedTuple):
    """One or more linear layers with the same input, and the bank's factors for them.

    ``weight`` [out + R, in] float16 patterns, the last R rows the shrink factors; ``bias`` [out] float32, or [0];
    ``expand`` [R, out] float16 patterns.
    """

    weight: Halves
    bias: Floats
    expand: Halves


class Layer(NamedTuple):
    """``norms`` [2, hidden] float32 weights before attention and before the MLP, ``eps`` theirs; the products; the
    attention's scale, and its window (0 for none)."""

    norms: Floats
    eps: float
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    scaling: float
    window: int


class LayerRows(NamedTuple):
    """The rows of a step: rotary ``cos`` and ``sin`` [rows, d] (the sines' first half negated), ``tables`` [rows] the
    row of ``blocks`` [any, blocks] that lists a row's KV blocks, ``positions`` [rows] how many earlier tokens it sees
    there, ``slots`` [rows] where its own key and value go; all int64 but the first two."""

    cos: Floats
    sin: Floats
    blocks: Places
    tables: Places
    positions: Places
    slots: Places
