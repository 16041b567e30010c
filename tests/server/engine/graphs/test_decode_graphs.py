"""Decode steps on recorded forwards; where there is no GPU, a recording is the forward itself on the same buffers."""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from tiny_engine import build, family_of, make_request, random_coefficients, random_prompt, serve

from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward.layout import HostGroup, HostLayout
from ladle.server.engine.graphs import decode_graphs
from ladle.server.engine.graphs.decode_graphs import DecodeGraphs, sizes_of
from ladle.server.engine.graphs.recorded_step import StepSize
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.request import GenerationRequest, StepOutput

CUDA = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu] if CUDA else []
DEVICE = "cuda" if CUDA else "cpu"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, StepSize]]:
    """The rows and sizes of the steps that ran on a recording."""
    if not CUDA:
        monkeypatch.setattr(decode_graphs, "recorder_for", lambda device: lambda work: work)
    made: list[tuple[int, StepSize]] = []
    run = DecodeGraphs.run

    def note(self: DecodeGraphs, layout: Any, size: StepSize, *tables: Any) -> Any:
        made.append((layout.tokens, size))
        return run(self, layout, size, *tables)

    monkeypatch.setattr(DecodeGraphs, "run", note)
    return made


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(family: Family, **options: Any) -> Engine:
        made.append(build(family, device=DEVICE, compiled_layers=False, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()


def drawn(rng: random.Random, members: list[str], count: int) -> list[GenerationRequest]:
    """Requests of very different lengths: rows are left over when the first of them end."""
    requests = []
    for index in range(count):
        coefficients = random_coefficients(rng, members) if rng.random() < 0.6 else None
        options = {"max_tokens": rng.choice([2, 5, 14]), "temperature": index % 2, "seed": index, "ignore_eos": True}
        requests.append(
            make_request(f"{index}", random_prompt(rng, 1, 30), coefficients, trace=index % 3 == 0, **options)
        )
    # The last three to go on: rows for four are the least that hold them.
    for name in ("long", "longer", "longest"):
        prompt, coefficients = random_prompt(rng, 1, 30), random_coefficients(rng, members)
        requests.append(make_request(name, prompt, coefficients, max_tokens=24, ignore_eos=True))
    return requests


def same(found: dict[str, list[StepOutput]], expected: dict[str, list[StepOutput]]) -> None:
    for name, outputs in expected.items():
        assert [output.token for output in found[name]] == [output.token for output in outputs], name
        assert [o.logprob for o in found[name]] == pytest.approx([o.logprob for o in outputs], abs=1e-4), name


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_the_same_tokens_as_without(
    arch: str, tmp_path: Path, engines: Callable[..., Engine], taken: list[tuple[int, StepSize]]
) -> None:
    rng = random.Random(fresh_seed())
    family = family_of(tmp_path, arch)
    requests = drawn(rng, list(family.low_rank), 7)
    expected = serve(engines(family, cuda_graphs=False), requests)
    assert not taken
    found = serve(engines(family), requests)
    same(found, expected)
    assert any(rows < size.lanes for rows, size in taken), "with rows left over"
    assert {size.merged for _, size in taken} == {True, False} or all(size.merged for _, size in taken)


def test_rows_left_over_touch_nobody(tmp_path: Path, engines: Callable[..., Engine], taken: list[Any]) -> None:
    """What a row held in one step is another's in the next: only block 0 may get anything from it then."""
    engine = engines(family_of(tmp_path))
    (graphs,), (cache,) = engine.runner._recorded.values(), engine.models.caches.values()
    generator = torch.Generator().manual_seed(fresh_seed())
    coefficients = engine.scheduler.table.coefficients
    coefficients[1:5] = torch.rand(4, coefficients.shape[1], generator=generator)
    # Somebody's weights overflow: what is left over must not compute with them, for padded tables point at block 0.
    coefficients[0] = torch.nan
    blocks, lanes = np.arange(1, 9).reshape(4, 2), np.arange(1, 5)
    positions, ids = (torch.randint(*span, (4,), generator=generator).numpy() for span in ((16, 32), (3, 300)))
    slots = blocks[:, 1] * BLOCK_SIZE + positions % BLOCK_SIZE

    def layout(rows: int) -> HostLayout:
        group = HostGroup(0, rows, 0, positions[:rows, None], blocks[:rows], 2 * BLOCK_SIZE)
        return HostLayout(ids[:rows], positions[:rows], slots[:rows], lanes[:rows], True, [group], None, [])

    for rows in (4, 3):
        cache.clear(list(range(cache.blocks)))
        size = graphs.size_for(layout(rows))
        assert size is not None and size.lanes == 4
        found = graphs.run(layout(rows), size)
        assert found.logits.shape[0] == found.hidden.shape[0] == rows
        written = cache.layers[0].flatten(1).abs().sum(dim=1).nonzero()[:, 0].cpu()
        assert set(written.tolist()) - {0} == set(slots[:rows].tolist())
        assert all(layer.isfinite().all() for layer in cache.layers)


def test_sizes_hold_every_decode_step(tmp_path: Path, engines: Callable[..., Engine]) -> None:
    table = engines(family_of(tmp_path), cuda_graphs=False, max_sequences=5, max_lanes=9).scheduler.table
    sizes = sizes_of(table)
    assert {size.lanes for size in sizes} == {1, 2, 4, 8} and {size.merged for size in sizes} == {False, True}
    assert max(size.blocks for size in sizes) >= table.blocks.shape[1]


@pytest.mark.skipif(CUDA, reason="a recorder that does not work stands in for the GPU's")
@pytest.mark.parametrize("fault", ["frozen", "refused"])
def test_a_recording_that_fails_or_lies_is_not_used(
    fault: str, tmp_path: Path, engines: Callable[..., Engine], monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def frozen(work: Callable[[], Any]) -> Callable[[], Any]:
        found = work()
        return lambda: found

    def refused(work: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(decode_graphs, "recorder_for", lambda device: {"frozen": frozen, "refused": refused}[fault])
    monkeypatch.setattr(DecodeGraphs, "run", lambda *_: pytest.fail("it was used"))
    family = family_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        engine = engines(family)
    assert {"frozen": "other values", "refused": "not permitted"}[fault] in caplog.text
    assert "and more" not in caplog.text
    assert len(serve(engine, [make_request("a", (5, 6, 7), max_tokens=4, ignore_eos=True)])["a"]) == 4
