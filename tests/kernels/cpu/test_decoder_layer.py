"""A compiled decoder layer against the formulas in float64."""

import math
from typing import Any

import numpy as np
import pytest

from ladle.kernels import dispatch
from ladle.kernels.cpu.decoder_layer import run_layer
from ladle.kernels.cpu.half_dots import exp

BLOCK = 4


def half(rng: np.random.Generator, *shape: int) -> Any:
    return (rng.standard_normal(shape) * 0.2).astype(np.float16).view(np.uint16)


def product(rng: np.random.Generator, out: int, size: int, ranks: int, bias: bool) -> dispatch.Product:
    offsets = rng.standard_normal(out).astype(np.float32) if bias else np.zeros(0, np.float32)
    return dispatch.Product(half(rng, out + ranks, size), offsets, half(rng, ranks, out))


class Case:
    """A random layer, pool and rows: decode rows of several lanes, a chunk of one prompt, candidates of one place."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.dim = int(rng.choice([2, 6, 16, 64]))
        self.kv_heads = int(rng.integers(1, 4))
        self.heads = self.kv_heads * int(rng.integers(1, 4))
        hidden, inner = int(rng.integers(3, 70)), int(rng.integers(3, 90))
        ranks = [int(rng.integers(0, 14)) for _ in range(4)]
        bias = bool(rng.integers(2))
        wide = (self.heads + 2 * self.kv_heads) * self.dim
        self.layer = dispatch.Layer(
            1 + 0.1 * rng.standard_normal((2, hidden)).astype(np.float32),
            1e-5,
            product(rng, wide, hidden, ranks[0], bias),
            product(rng, hidden, self.heads * self.dim, ranks[1], bias),
            product(rng, 2 * inner, hidden, ranks[2], False),
            product(rng, hidden, inner, ranks[3], bias),
            self.dim**-0.5,
            int(rng.choice([0, 0, 5])),
        )
        rows = int(rng.choice([1, 2, 3, 4, 5, 7, 8, 11]))
        lanes, most = 3, 5
        blocks = 1 + rng.permutation(lanes * most).reshape(lanes, most)  # block 0 is nobody's
        tables, positions, slots = [], [], []
        for lane in range(lanes):
            start = int(rng.integers(0, BLOCK * (most - 1)))
            count = rows - len(tables) if lane == lanes - 1 else int(rng.integers(0, rows - len(tables) + 1))
            candidates = bool(rng.integers(2))
            for step in range(min(count, BLOCK * most - start)):
                position = start if candidates else start + step
                tables.append(lane)
                positions.append(position)
                own = (1 + lanes * most) * BLOCK + len(slots)  # scratch
                slots.append(own if candidates else blocks[lane, position // BLOCK] * BLOCK + position % BLOCK)
        self.rows = len(tables)
        f = rng.standard_normal
        self.kv = f(((1 + lanes * most) * BLOCK + 16, 2, self.kv_heads, self.dim)).astype(np.float32)
        angles = f((self.rows, self.dim // 2))
        sin = np.concatenate((-np.sin(angles), np.sin(angles)), axis=1).astype(np.float32)
        cos = np.concatenate((np.cos(angles),) * 2, axis=1).astype(np.float32)
        self.places = dispatch.LayerRows(
            cos, sin, blocks.astype(np.int64), *(np.array(a, np.int64) for a in (tables, positions, slots))
        )
        self.x = f((self.rows, hidden)).astype(np.float32)
        gates = [f((self.rows, count)).astype(np.float32) * (rng.random(count) < 0.6) for count in ranks]
        gates = [gate * (rng.random((self.rows, 1)) < 0.7) for gate in gates]
        self.scales: Any = tuple(gate.astype(np.float32) for gate in gates)
        if rng.integers(4) == 0:
            self.scales = tuple(np.zeros((self.rows, 0), np.float32) for _ in ranks)

    def run(self, threads: int = 2) -> tuple[Any, Any]:
        x, kv = self.x.copy(), self.kv.copy()
        run_layer(x, self.layer, self.scales, self.places, kv, BLOCK, threads)
        return x, kv

    def expected(self) -> tuple[Any, Any]:
        layer, places = self.layer, self.places
        kv = self.kv.astype(np.float64)
        x = self.x.astype(np.float64)

        def norm(index: int) -> Any:
            scale = np.sqrt((x * x).mean(axis=1, keepdims=True) + layer.eps)
            return x / scale * layer.norms[index]

        qkv = self._linear(layer.qkv, self.scales[0], norm(0)).reshape(self.rows, -1, self.dim)
        turned = qkv[:, : self.heads + self.kv_heads]
        rolled = np.roll(turned, self.dim // 2, axis=-1)
        turned = turned * places.cos[:, None] + rolled * places.sin[:, None]
        for t in range(self.rows):
            kv[places.slots[t], 0] = turned[t, self.heads :]
            kv[places.slots[t], 1] = qkv[t, self.heads + self.kv_heads :]
        mixed = np.zeros((self.rows, self.heads, self.dim))
        for t in range(self.rows):
            position = int(places.positions[t])
            first = max(0, position - layer.window + 1) if layer.window else 0
            seen = [places.blocks[places.tables[t], p // BLOCK] * BLOCK + p % BLOCK for p in range(first, position)]
            keys = kv[[*seen, places.slots[t]]]
            for head in range(self.heads):
                own = keys[:, :, head // (self.heads // self.kv_heads)]
                scores = own[:, 0] @ turned[t, head] * layer.scaling
                weights = np.exp(scores - scores.max())
                mixed[t, head] = weights / weights.sum() @ own[:, 1]
        x = x + self._linear(layer.out, self.scales[1], mixed.reshape(self.rows, -1))
        gate, up = np.split(self._linear(layer.gate_up, self.scales[2], norm(1)), 2, axis=1)
        x = x + self._linear(layer.down, self.scales[3], gate / (1 + np.exp(-gate)) * up)
        return x, kv

    def _linear(self, product: dispatch.Product, scale: Any, x: Any) -> Any:
        weight, expand = (part.view(np.float16).astype(np.float64) for part in (product.weight, product.expand))
        total = expand.shape[1]
        y = x @ weight[:total].T + (product.bias if len(product.bias) else 0)
        ranks = scale.shape[1]
        return y + (x @ weight[total : total + ranks].T * scale) @ expand[:ranks]


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
    others = case.places.tables != case.places.tables[row]
    x, _ = case.run()
    assert np.isnan(x[row]).all()
    assert np.array_equal(x[others], clean[others])


def test_what_no_row_asks_for_is_not_read(seed: int) -> None:
    case = next(case for case in (Case(seed + i) for i in range(100)) if case.scales[0].shape[1] > 2)
    case.scales[0][:, 1] = 0
    expected, _ = case.run()
    total = case.layer.qkv.expand.shape[1]
    case.layer.qkv.weight[total + 1] = np.float16(np.inf).view(np.uint16)
    x, _ = case.run()
    assert np.array_equal(x, expected)


def test_exp() -> None:
    x = np.concatenate((np.linspace(-60, 88, 20001), [0.0, 1e-30, -1e-30])).astype(np.float32)
    found = np.array([exp(value) for value in x])
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() < 3e-7
    assert exp(np.float32(0)) == 1 and math.isnan(exp(np.float32(np.nan)))
    assert 0 < exp(np.float32(-1e30)) < 1e-26 and exp(np.float32(np.inf)) > 1e38
