"""Compiled decoder layers against the formulas in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from ladle.kernels import dispatch
from ladle.kernels.cpu import elementary
from ladle.kernels.cpu.arrays import LayerPass
from ladle.kernels.cpu.compiling.compiler import INNER
from ladle.kernels.cpu.decoder_stack import run_layers
from ladle.kernels.cpu.tiled_product import TiledProduct, quantise
from ladle.kernels.cpu.tiles import has_pairs

BLOCK = 4


LAYERS = 2


class Linears:
    """The same product of every layer: packed, and as float64 numbers."""

    def __init__(self, rng: np.random.Generator, out: int, size: int, ranks: int, bias: bool) -> None:
        def draw(*shape: int) -> Any:
            # What float16 and bfloat16 can hold.
            return torch.from_numpy(rng.standard_normal((LAYERS, *shape)) * 0.2).bfloat16().half().float()

        self.weight, self.shrink, self.expand = draw(out, size), draw(ranks, size), draw(out, ranks)
        self.bias = torch.from_numpy(rng.standard_normal((LAYERS, out))).float() if bias else None

    def packed(self, dtype: torch.dtype, quantized: bool) -> dispatch.Product:
        return dispatch.stack_products(
            [
                TiledProduct(
                    self.weight[layer],
                    None if self.bias is None else self.bias[layer],
                    self.shrink[layer],
                    self.expand[layer],
                    dtype,
                    quantized,
                    rounded=quantized,
                )
                for layer in range(LAYERS)
            ]
        )

    def round(self) -> None:
        """From here on the weights are what int8 holds of them."""
        for weight in self.weight:
            held, steps = quantise(weight)
            weight.copy_(held.float() * torch.from_numpy(steps)[:, None])

    def __call__(self, layer: int, scale: Any, x: Any) -> Any:
        weight, shrink, expand = (part[layer].double().numpy() for part in (self.weight, self.shrink, self.expand))
        y = x @ weight.T + (0 if self.bias is None else self.bias[layer].double().numpy())
        ranks = scale.shape[1]
        return y + (x @ shrink[:ranks].T * scale) @ expand[:, :ranks].T


class Case:
    """Random layers, pool and rows: decode rows of several lanes, a chunk of one prompt, candidates of one position."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32, quantized: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.dim = int(rng.choice([2, 6, 16, 64]))
        self.kv_heads = int(rng.integers(1, 4))
        self.heads = self.kv_heads * int(rng.integers(1, 4))
        # A product reads pairs of inputs.
        hidden, inner = 2 * int(rng.integers(2, 35)), 2 * int(rng.integers(2, 45))
        if quantized:
            # All products in whole numbers, where the processor has them: each mixture of forms is compiled anew.
            hidden, inner, self.dim = 2 * int(rng.integers(29, 33)), 2 * int(rng.integers(57, 65)), 64
        most_ranks = int(rng.choice([14, 90]))  # up to one tile of them, or several
        ranks = [int(rng.integers(0, most_ranks)) for _ in range(4)]
        bias = bool(rng.integers(2))
        wide = (self.heads + 2 * self.kv_heads) * self.dim
        self.linears = (
            Linears(rng, wide, hidden, ranks[0], bias),
            Linears(rng, hidden, self.heads * self.dim, ranks[1], bias),
            Linears(rng, 2 * inner, hidden, ranks[2], False),
            Linears(rng, hidden, inner, ranks[3], bias),
        )
        self.dtype = dtype
        qkv, out, gate_up, down = (linears.packed(dtype, quantized) for linears in self.linears)
        if quantized:
            for linears in self.linears:
                linears.round()
        self.layers = dispatch.Layers(
            1 + 0.1 * rng.standard_normal((LAYERS, 2, hidden)).astype(np.float32),
            1e-5,
            qkv,
            out,
            gate_up,
            down,
            self.heads * self.dim,
            self.dim**-0.5,
            rng.choice([0, 0, 5], LAYERS),
            np.zeros(0, np.int16 if dtype == torch.bfloat16 else np.float32),
        )
        rows = int(rng.choice([1, 2, 3, 4, 5, 7, 8, 11]))
        lanes, most = 3, 5
        blocks = 1 + rng.permutation(lanes * most).reshape(lanes, most)  # block 0 is nobody's
        table_rows, positions, slot_mapping = [], [], []
        for lane in range(lanes):
            start = int(rng.integers(0, BLOCK * (most - 1)))
            count = rows - len(table_rows) if lane == lanes - 1 else int(rng.integers(0, rows - len(table_rows) + 1))
            candidates = bool(rng.integers(2))
            for step in range(min(count, BLOCK * most - start)):
                position = start if candidates else start + step
                table_rows.append(lane)
                positions.append(position)
                own = (1 + lanes * most) * BLOCK + len(slot_mapping)  # scratch
                slot_mapping.append(own if candidates else blocks[lane, position // BLOCK] * BLOCK + position % BLOCK)
        self.rows = len(table_rows)
        f = rng.standard_normal
        self.kv = f((LAYERS, (1 + lanes * most) * BLOCK + 16, 2, self.kv_heads, self.dim)).astype(np.float32)
        angles = f((self.rows, self.dim // 2))
        sin = np.concatenate((-np.sin(angles), np.sin(angles)), axis=1).astype(np.float32)
        cos = np.concatenate((np.cos(angles),) * 2, axis=1).astype(np.float32)
        self.paged = dispatch.PagedTokens(
            cos, sin, blocks.astype(np.int64), *(np.array(a, np.int64) for a in (table_rows, positions, slot_mapping))
        )
        self.x = f((self.rows, hidden)).astype(np.float32)
        shared = LAYERS if rng.integers(2) else 1
        gates = [f((shared, self.rows, count)).astype(np.float32) * (rng.random(count) < 0.6) for count in ranks]
        gates = [gate * (rng.random((self.rows, 1)) < 0.7) for gate in gates]
        self.scales: Any = tuple(gate.astype(np.float32) for gate in gates)
        # Steering vectors: none, or some of which each row has some, or none.
        count = int(rng.integers(0, 4))
        amounts = f((self.rows, count)) * (rng.random((self.rows, count)) < 0.6)
        self.steering = amounts.astype(np.float32), f((LAYERS, count, hidden)).astype(np.float32)
        if rng.integers(4) == 0:
            self.scales = tuple(np.zeros((1, self.rows, 0), np.float32) for _ in ranks)

    def run(self, threads: int = 2) -> tuple[Any, Any]:
        x = self.x.copy()
        if self.dtype == torch.float32:
            kv = self.kv.copy()
            run_layers(LayerPass(x, self.layers, self.scales, self.paged, kv, BLOCK, threads, *self.steering))
            return x, kv
        pool = torch.from_numpy(self.kv).bfloat16()
        kv = pool.view(torch.int16).numpy()
        run_layers(LayerPass(x, self.layers, self.scales, self.paged, kv, BLOCK, threads, *self.steering))
        return x, pool.float().numpy()

    def expected(self) -> tuple[Any, Any]:
        kv = self._held(self.kv.astype(np.float64))
        x = self.x.astype(np.float64)
        for layer in range(LAYERS):
            x = self._layer(layer, x, kv[layer])
        return x, kv

    def _held(self, values: Any) -> Any:
        """``values`` as what the layers hand on holds them: inputs of products, keys and values."""
        if self.dtype == torch.float32:
            return values
        return torch.from_numpy(values).to(self.dtype).double().numpy()

    def _layer(self, layer: int, x: Any, kv: Any) -> Any:
        layers, paged = self.layers, self.paged
        scales = [scale[layer if len(scale) > 1 else 0] for scale in self.scales]
        window = layers.windows[layer]

        def norm(index: int) -> Any:
            scale = np.sqrt((x * x).mean(axis=1, keepdims=True) + layers.eps)
            return self._held(x / scale * layers.norms[layer, index])

        qkv = self.linears[0](layer, scales[0], norm(0)).reshape(self.rows, -1, self.dim)
        turned = qkv[:, : self.heads + self.kv_heads]
        rolled = np.roll(turned, self.dim // 2, axis=-1)
        turned = turned * paged.cos[:, None] + rolled * paged.sin[:, None]
        for t in range(self.rows):
            kv[paged.slot_mapping[t], 0] = self._held(turned[t, self.heads :])
            kv[paged.slot_mapping[t], 1] = self._held(qkv[t, self.heads + self.kv_heads :])
        mixed = np.zeros((self.rows, self.heads, self.dim))
        for t in range(self.rows):
            position = int(paged.positions[t])
            first = max(0, position - window + 1) if window else 0
            blocks = paged.block_table[paged.table_rows[t]]
            seen = [blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(first, position)]
            keys = kv[[*seen, paged.slot_mapping[t]]]
            for head in range(self.heads):
                own = keys[:, :, head // (self.heads // self.kv_heads)]
                scores = own[:, 0] @ turned[t, head] * layers.scaling
                weights = np.exp(scores - scores.max())
                mixed[t, head] = weights / weights.sum() @ own[:, 1]
        x = x + self.linears[1](layer, scales[1], self._held(mixed.reshape(self.rows, -1)))
        gate, up = np.split(self.linears[2](layer, scales[2], norm(1)), 2, axis=1)
        x = x + self.linears[3](layer, scales[3], self._held(gate / (1 + np.exp(-gate)) * up))
        amounts, vectors = self.steering
        return x + amounts.astype(np.float64) @ vectors[layer].astype(np.float64)


@pytest.mark.parametrize("round_", range(12))
def test_a_layer_computes_the_formulas(seed: int, round_: int) -> None:
    case = Case(seed + round_)
    x, kv = case.run()
    expected_x, expected_kv = case.expected()
    scale = np.abs(expected_x).max()
    assert np.abs(x - expected_x).max() <= 2e-5 * scale
    assert np.abs(kv - expected_kv).max() <= 2e-5 * max(1.0, np.abs(expected_kv).max())
    for threads in (1, 3):  # cut otherwise, computed the same
        again, _ = case.run(threads)
        assert np.abs(again - x).max() <= 1e-5 * scale


def test_what_is_not_finite_stays_in_its_row(seed: int) -> None:
    case = next(case for case in (Case(seed + i) for i in range(100)) if case.rows > 2)
    clean, _ = case.run()
    row = seed % case.rows
    case.x[row, 0] = np.nan
    # Rows of other lanes do not see it; those of its own lane may, through its key.
    others = case.paged.table_rows != case.paged.table_rows[row]
    x, _ = case.run()
    assert np.isnan(x[row]).all()
    assert np.array_equal(x[others], clean[others])


def test_what_no_row_asks_for_leaves_no_mark(seed: int) -> None:
    case = next(case for case in (Case(seed + i) for i in range(100)) if case.scales[0].shape[2] > 2)
    case.scales[0][:, :, 1] = 0
    expected, _ = case.run()
    case.layers.qkv.shrink[:, 0, :, 1] = np.float16(np.inf).view(np.uint16)
    x, _ = case.run()
    assert np.array_equal(x, expected)


@pytest.mark.skipif(not has_pairs(), reason="needs a processor that multiplies pairs of bfloat16")
@pytest.mark.parametrize("round_", range(4))
def test_in_bfloat16_it_is_as_near_as_its_roundings(seed: int, round_: int) -> None:
    case = Case(seed + round_, torch.bfloat16)
    x, kv = case.run()
    expected_x, expected_kv = case.expected()
    assert np.linalg.norm(x - expected_x) <= 1e-2 * np.linalg.norm(expected_x)
    assert np.linalg.norm(kv - expected_kv) <= 1e-2 * np.linalg.norm(expected_kv)


@pytest.mark.parametrize("round_", range(4))
def test_int8_weights_are_multiplied_as_finely_as_their_activations_allow(seed: int, round_: int) -> None:
    case = Case(seed + round_, quantized=True)
    x, kv = case.run()
    expected_x, expected_kv = case.expected()
    assert np.linalg.norm(x - expected_x) <= 1e-3 * np.linalg.norm(expected_x)
    assert np.linalg.norm(kv - expected_kv) <= 1e-3 * np.linalg.norm(expected_kv)
    alone, _ = case.run(threads=1)
    assert np.linalg.norm(alone - x) <= 1e-5 * np.linalg.norm(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_whatever_is_beside_it(seed: int, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not has_pairs():
        pytest.skip("needs a processor that multiplies pairs of bfloat16")
    case = next(case for case in (Case(seed + i, dtype) for i in range(100)) if case.rows > 3)
    together, _ = case.run()
    row = int(np.argmin(case.paged.positions))  # none of its keys is written by the others
    if (case.paged.table_rows == case.paged.table_rows[row]).sum() > 1:
        case.paged.positions[row] = 0
        together, _ = case.run()
    part = slice(row, row + 1)
    case.x, case.scales = case.x[part], tuple(scale[:, part].copy() for scale in case.scales)
    case.steering = case.steering[0][part].copy(), case.steering[1]
    paged = case.paged
    case.paged = dispatch.PagedTokens(
        paged.cos[part],
        paged.sin[part],
        paged.block_table,
        paged.table_rows[part],
        paged.positions[part],
        paged.slot_mapping[part],
    )
    alone, _ = case.run(threads=1)
    assert np.array_equal(alone[0], together[row])


def test_exp() -> None:
    exp = njit(**INNER)(lambda value: elementary.exp(value))
    x = np.concatenate((np.linspace(-60, 88, 20001), [0.0, 1e-30, -1e-30])).astype(np.float32)
    found = np.array([exp(value) for value in x])
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() < 3e-7
    assert exp(np.float32(0)) == 1 and math.isnan(exp(np.float32(np.nan)))
    assert 0 < exp(np.float32(-1e30)) < 1e-26 and exp(np.float32(np.inf)) > 1e38
