"""Guided requests of all methods in one batch: each gets what it gets alone, bit for bit on a CPU in float32."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from guided_requests import ROOMY, World, random_requests
from seeds import fresh_seed
from tiny_engine import alone, build, serve

from ladle.merging.family.family import Family
from ladle.server.engine.requests.request import StepOutput

ENGINES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "no prefix cache": {"prefix_cache": False},
    "small chunks": {"max_batch_tokens": 1},
    "few at once": {"max_sequences": 3, "max_lanes": 20},
}


def numbers(outputs: Sequence[StepOutput]) -> list[tuple[Any, ...]]:
    """All that a request got, text and numbers, save what caching may change."""
    return [(o.token, o.logprob, o.top, o.trace, o.text, o.finish_reason) for o in outputs]


def block_bytes(family: Family) -> int:
    """Bytes of one block of tokens in the KV pools of all models."""
    memory = 8 << 20
    return -(-memory // build(family, kv_memory=memory).blocks.total)


@pytest.mark.parametrize(
    ("arch", "kind", "config"),
    [
        ("llama", "singles", {"full": ("only-simple",)}),
        ("gemma2", "rows", {}),
        ("qwen2", "small", {"use_sliding_window": True, "sliding_window": 19, "max_window_layers": 1}),
    ],
)
def test_together_as_alone(arch: str, kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, arch, kind=kind, **config)
    requests = random_requests(rng, world, each=1)
    single = build(world.family, **ROOMY | {"prefix_cache": False})
    expected = {request.request_id: alone(single, request) for request in requests}
    assert all(outputs[-1].error is None for outputs in expected.values())
    # Every setting on one architecture, one afresh on the others.
    for name in ENGINES if arch == "llama" else rng.sample(sorted(ENGINES), 1):
        options = ENGINES[name]
        engine = build(world.family, **ROOMY | options)
        # The second time runs over what the first left in the prefix cache.
        for _ in range(2 if name == "as it comes" else 1):
            together = serve(engine, requests, rng)
            for request in requests:
                got, wanted = together[request.request_id], expected[request.request_id]
                assert numbers(got) == numbers(wanted), (name, request.request_id, request.plan)
        if name == "as it comes":
            assert engine.stats().prefix_hits > 0


@pytest.mark.parametrize(("arch", "kind"), [("llama", "singles"), ("mistral", "rows")])
def test_preempted_requests_go_on_where_they_were(arch: str, kind: str, tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, arch, kind=kind)
    requests = random_requests(rng, world, each=1, longest=10, tokens=(30, 44))
    single = build(world.family, **ROOMY | {"prefix_cache": False})
    expected = {request.request_id: alone(single, request) for request in requests}
    # Enough for any of them, and for the beginnings of many.
    engine = build(world.family, **ROOMY | {"kv_memory": 60 * block_bytes(world.family)})
    for _ in range(5):  # all at once or one by one; whether it gets that tight takes some luck
        together = serve(engine, requests, rng if rng.random() < 0.3 else None)
        for request in requests:
            got, wanted = together[request.request_id], expected[request.request_id]
            # What was preempted is computed anew by other products, so only nearly the same.
            assert [o.token for o in got] == [o.token for o in wanted], request
            assert [o.logprob for o in got] == pytest.approx([o.logprob for o in wanted], abs=1e-3)
        if engine.stats().preemptions > 0:
            return
    raise AssertionError("nothing was preempted")
