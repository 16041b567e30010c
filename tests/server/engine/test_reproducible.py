"""With ``reproducible`` a request's tokens are its own, whatever the library's products do with more or fewer rows."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import Collector, build, family_of, make_request, random_prompt

from ladle.kernels import dispatch
from ladle.kernels.cpu import packed_linear
from ladle.kernels.cpu.tiles import has_pairs
from ladle.kernels.dispatch import PackedLinear
from ladle.merging.exceptions import InputError
from ladle.server.engine import engine_config
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward.compiled_stack import DecoderStack

Said = list[tuple[int, float]]


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose products depend on how many rows share a call, as some do in bfloat16."""
    plain = PackedLinear._product

    def product(self: PackedLinear, rows: torch.Tensor, addend: torch.Tensor | None = None) -> torch.Tensor:
        return plain(self, rows, addend) * (1.0 + (0.0625 if rows.shape[0] < 6 else 0.0))

    monkeypatch.setattr(PackedLinear, "tried", {})
    monkeypatch.setattr(PackedLinear, "_product", product)
    monkeypatch.setattr(dispatch, "tiled_rows", lambda *model: 0)


def answer(engine: Engine, prompt: tuple[int, ...], beside: int, rng: random.Random) -> tuple[Said, int]:
    """Tokens and logprobs of an answer to ``prompt`` with so many others in its batch, and how much was cached."""
    collector = Collector()
    for number in range(beside):
        engine.submit(make_request(f"other-{number}", random_prompt(rng, 3, 60), max_tokens=30), Collector())
    engine.submit(make_request("one", prompt, max_tokens=12, temperature=1.0, seed=7), collector)
    while engine.step():
        pass
    outputs = collector.outputs["one"]
    return [(output.token, output.logprob) for output in outputs], outputs[-1].cached_tokens


def all_ways(family: Any, **options: Any) -> list[Said]:
    """One request computed alone, from the cache, within a batch, and as a second turn whose first one was decoded."""
    rng = random.Random(fresh_seed())
    # So long that the answer fills a block of the cache, which the second turn then finds.
    length = 16 * rng.randint(2, 3) + rng.randint(6, 15)
    prompt = random_prompt(rng, length, length)
    engine = build(family, dtype="bfloat16", **options)
    first, _ = answer(engine, prompt, 0, rng)
    again, cached = answer(engine, prompt, 0, rng)
    assert cached > 0
    crowded, _ = answer(build(family, dtype="bfloat16", prefix_cache=False, **options), prompt, 5, rng)
    longer = prompt + tuple(token for token, _ in first) + random_prompt(rng, 20, 20)
    turn, _ = answer(engine, longer, 0, rng)
    fresh, _ = answer(build(family, dtype="bfloat16", prefix_cache=False, **options), longer, 3, rng)
    return [first, again, crowded, turn, fresh]


@pytest.mark.parametrize("native", [True, False])
def test_the_same_tokens_however_they_are_computed(
    tmp_path: Path, moody: None, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: native)
    first, again, crowded, turn, fresh = all_ways(family_of(tmp_path), reproducible=True)
    assert first == again == crowded
    assert turn == fresh


@pytest.mark.parametrize("native", [True, False])
def test_compiled_layers_need_no_option_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if native and not has_pairs():
        pytest.skip("needs a processor that multiplies pairs of bfloat16")
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: native)
    monkeypatch.setattr(dispatch, "tiled_rows", lambda *model: dispatch.ALL_ROWS)
    first, again, crowded, turn, fresh = all_ways(family_of(tmp_path))
    assert first == again == crowded
    assert turn == fresh


@pytest.mark.parametrize("reproducible", [True, False])
def test_where_many_rows_are_multiplied_otherwise_the_option_decides(
    tmp_path: Path, moody: None, monkeypatch: pytest.MonkeyPatch, reproducible: bool
) -> None:
    """As on a processor with a unit for products of many rows, which tiles leave to the library."""
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", has_pairs)
    monkeypatch.setattr(dispatch, "tiled_rows", lambda *model: 8)
    monkeypatch.setattr(DecoderStack, "choose_rows", lambda stack: None)
    library = PackedLinear._product
    # By luck the two round all products of a small model alike.
    monkeypatch.setattr(PackedLinear, "_product", lambda *given: library(*given) * (1.0 + 2**-6))
    first, again, crowded, turn, fresh = all_ways(family_of(tmp_path), reproducible=reproducible)
    assert (first == again == crowded and turn == fresh) == reproducible


def test_without_it_such_a_library_would_be_seen(tmp_path: Path, moody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: True)
    first, _, crowded, _, _ = all_ways(family_of(tmp_path))
    assert first != crowded


def test_products_are_cut_only_where_they_have_to_be() -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    weight = torch.randn(24, 16, generator=generator)
    assert not PackedLinear(weight, None, torch.float32).in_pieces
    # Float32 keeps its rows apart by itself on every processor that the tests ran on.
    assert not PackedLinear(weight, None, torch.float32, reproducible=True).in_pieces


def test_pieces_give_every_row_its_own_value(moody: None) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    weight = torch.randn(24, 16, generator=generator)
    rows = torch.randn(70, 16, generator=generator)
    addend = torch.randn(70, 24, generator=generator)
    linear = PackedLinear(weight, None, torch.float32, reproducible=True)
    assert linear.in_pieces
    whole = linear(rows, addend)
    torch.testing.assert_close(whole, rows @ weight.T + addend)
    for count in (0, 1, 2, packed_linear.PIECE, packed_linear.PIECE + 1, 70):
        assert torch.equal(linear(rows[:count], addend[:count]), whole[:count])


def test_what_was_not_tried_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="reproducible.*tensor_parallel"):
        EngineConfig(reproducible=True, tensor_parallel=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert EngineConfig(reproducible=True).resolve_device().type == "cpu"
    with pytest.raises(InputError, match="no GPU was tried"):
        EngineConfig(reproducible=True, device="cuda").resolve_device()
