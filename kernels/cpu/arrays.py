"""What a compiled decoder layer takes: its weights, and the rows of a step. Arrays only."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]
"""float16 bit patterns."""
Indices = NDArray[np.int64]


class Digits(NamedTuple):
    """Rows of activations as whole numbers, each as two digits to the base 256, times a scale per row.

    Attributes:
        values: [2 rows, bytes] int8, the higher digits of a row and below them its lower ones.
        sums: [rows, 2] int32, the sum of a row's digits, times what stands for a weight of zero.
        scales: [rows] float32.
    """

    values: Any
    sums: Any
    scales: Any


class Shrunk(NamedTuple):
    """What a bank's shrink products gave, times the coefficients of the rows.

    Attributes:
        numbers: [rows, R in whole blocks] float32.
        pairs: [rows, 2 W] bfloat16 patterns (int16), W the ranks in whole tiles: the nearest of each number, and after
            all of those what is left of it; [0, 0] where none are asked for.
        used: [blocks] whether any row asks for ranks of a block.
    """

    numbers: Floats
    pairs: Any
    used: Any


class Product(NamedTuple):
    """One or more linear layers with the same input, and the bank's factors for them.

    Attributes:
        weight: [blocks, steps, numbers per step] of ``out`` outputs, as ``tiled_product.pack`` makes it.
        steps: [16 blocks] float32, what one step of an output's quantised weights counts, or [0].
        bias: [out] float32, or [0].
        shrink: the R shrink factors, packed like ``weight``.
        expand: [R, out] float16 patterns; [0, out] where there are ``tiles``.
        tiles: the R expand factors of bfloat16, packed like ``weight`` in whole tiles of ranks, or [0, 0, 32].
    """

    weight: Any
    steps: Floats
    bias: Floats
    shrink: Any
    expand: Halves
    tiles: Any


class Layers(NamedTuple):
    """All layers of a model. The arrays of products have a first axis of layers.

    Attributes:
        norms: [layers, 2, hidden] float32, weights before attention and before the MLP.
        eps: of the norms.
        qkv: queries, keys and values.
        out: attention's output.
        gate_up: the MLP's gate and up.
        down: the MLP's output.
        attended: inputs of the product ``out``.
        scaling: of attention's scores.
        windows: [layers] int64, tokens that a layer sees; 0 for all.
        inputs: [0] of the dtype that the products read.
    """

    norms: Floats
    eps: float
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    attended: int
    scaling: float
    windows: Indices
    inputs: Any


class PagedTokens(NamedTuple):
    """Where the tokens of a step are: a row of the activations is one token.

    Attributes:
        cos: [rows, d] float32, rotary cosines.
        sin: [rows, d] float32, rotary sines, the first half negated.
        block_table: [any, blocks] int64.
        table_rows: [rows] int64, the row of ``block_table`` that lists a token's KV blocks.
        positions: [rows] int64, how many earlier tokens it sees there.
        slot_mapping: [rows] int64, where its own key and value go.
    """

    cos: Floats
    sin: Floats
    block_table: Indices
    table_rows: Indices
    positions: Indices
    slot_mapping: Indices


class LayerPass(NamedTuple):
    """One pass of some rows through all layers.

    Attributes:
        x: [rows, hidden] float32, which the pass changes in place.
        layers: the weights.
        scales: [layers or 1, rows, R] coefficient of each rank column of the four products, [1, rows, 0] for the plain
            base; one layer's stands for all.
        paged: where each row is.
        kv: the pool [layers, slots, 2, kv heads, d], float32 or bfloat16 patterns (int16); a row sees the tokens before
            its position through its blocks, and itself at its slot. New keys and values are written before any row
            attends.
        block: slots per block.
        threads: how many parts the work is cut into.
        amounts: [rows, n], how much of each of n steering vectors a row gets; [rows, 0] where none gets any.
        vectors: [layers, n, hidden], what is added after each layer.
    """

    x: Floats
    layers: Layers
    scales: tuple[Floats, Floats, Floats, Floats]
    paged: PagedTokens
    kv: Any
    block: int
    threads: int
    amounts: Floats
    vectors: Floats
