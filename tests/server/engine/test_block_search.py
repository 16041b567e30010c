"""Blockwise decoding: draws and choices against the float64 reference, ends of texts, and nothing left behind."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_requests import World
from reference_text import Text, View
from seeds import fresh_seed
from tiny_engine import Collector, build, drain, serve

from ladle.kernels.reference.operations import gumbel
from ladle.server.engine.scores.slot_tables import draw_keys

STEERING: dict[str, Any] = {"method": "cd", "preference": {"positive": 0.7, "simple": 0.3}}


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


def _drawn(
    world: World, prompts: Mapping[View, Sequence[int]], tokens: list[int], length: int, seed: int
) -> tuple[int, ...]:
    """The block that (seed, position) decide, from the reference's logprobs."""
    every = torch.arange(world.reference.scores({"method": "base"}, prompts).shape[-1], dtype=torch.int32)
    output = list(tokens)
    for position in range(len(tokens), len(tokens) + length):
        row = world.reference.scores({"method": "base"}, prompts, output, position)[0]
        words = draw_keys(np.array([seed], dtype=np.uint64), np.array([position]))
        noise = gumbel(torch.from_numpy(words)[0], every)
        output.append(int((torch.log_softmax(row, -1) + noise).argmax()))
    return tuple(output[len(tokens) :])


def _worth(world: World, prompts: Mapping[View, Sequence[int]], tokens: Sequence[int], merged: bool) -> float:
    text = Text(world.reference.weights, prompts, tokens[:-1], len(tokens) - 1)
    parts = world.reference.chosen("explicit", STEERING)
    return float(world.reference.worth(text, torch.tensor([[tokens[-1]]]), parts, merged))


def _expected(
    world: World, prompts: Mapping[View, Sequence[int]], seed: int, count: int, length: int, total: int, merged: bool
) -> list[int]:
    words = draw_keys(np.full(count, seed, dtype=np.uint64), np.arange(count)).view(np.uint64)[:, 0].tolist()
    tokens: list[int] = []
    while len(tokens) < total:
        size = min(length, total - len(tokens))
        blocks = [_drawn(world, prompts, tokens, size, own) for own in [seed, *words[1:]]]
        tokens += max(blocks, key=lambda block: _worth(world, prompts, [*tokens, *block], merged))
    return tokens


@pytest.mark.parametrize("combine", ["merged", "ensemble"])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_blocks_equal_the_reference(tmp_path: Path, rng: random.Random, arch: str, combine: str) -> None:
    world = World(tmp_path, rng, arch, pblora=False)
    engine = build(world.family, dtype="float64", max_lanes=100)
    requests, expected = [], {}
    for index in range(3):
        prompts, seed = world.prompts(rng), rng.getrandbits(60)
        count, length, total = rng.randint(1, 4), rng.randint(1, 5), rng.randint(3, 9)
        steering = {**STEERING, "combine": combine, "candidates": count, "block_length": length}
        requests.append(world.request(f"r{index}", steering, prompts, max_tokens=total, seed=seed))
        expected[f"r{index}"] = _expected(world, prompts, seed, count, length, total, combine == "merged")
        plain = world.request(f"p{index}", {"method": "vas", **STEERING, "strength": 2}, prompts, seed=seed)
        requests.append(plain)
    outputs = serve(engine, requests, rng)
    for name, tokens in expected.items():
        assert [output.token for output in outputs[name]] == tokens
        assert [output.completion_tokens for output in outputs[name]] == list(range(1, len(tokens) + 1))
        assert outputs[name][-1].finish_reason == "length"
        assert outputs[name][-1].value is not None


def test_one_block_is_plain_sampling(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama", pblora=False)
    engine = build(world.family)
    prompts, seed = world.prompts(rng), rng.getrandbits(60)
    options = {"max_tokens": 20, "seed": seed, "logprobs": 2, "frequency_penalty": 0.5}
    one = world.request("one", {**STEERING, "candidates": 1, "block_length": 6}, prompts, **options)
    plain = world.request("plain", {"method": "base"}, prompts, **options)
    outputs = serve(engine, [one, plain])
    for block, base in zip(outputs["one"], outputs["plain"], strict=True):
        assert (block.token, block.text, block.finish_reason) == (base.token, base.text, base.finish_reason)
        assert block.logprob == pytest.approx(base.logprob, abs=1e-4)


def test_stop_strings_and_ends_of_text_end_it(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama", pblora=False)
    engine = build(world.family)
    prompts = world.prompts(rng)
    steering = {**STEERING, "candidates": 3, "block_length": 4}
    whole = world.request("whole", steering, prompts, max_tokens=16, seed=5)
    full = "".join(output.text for output in serve(engine, [whole])["whole"])
    stop = full[len(full) // 2 :][:2]
    assert stop, "a random tiny model writes something in 16 tokens"
    cut = world.request("cut", steering, prompts, max_tokens=16, seed=5, stop=(stop,))
    outputs = serve(engine, [cut])["cut"]
    assert outputs[-1].finish_reason == "stop"
    assert "".join(output.text for output in outputs) == full[: full.find(stop)]
    eos = next(iter(engine.eos))
    biased = world.request(
        "eos", steering, prompts, max_tokens=16, seed=5, ignore_eos=False, logit_bias=((eos, 100.0),)
    )
    outputs = serve(engine, [biased])["eos"]
    assert [output.token for output in outputs] == [eos] and outputs[0].finish_reason == "stop"


def test_cancelled_and_failed_searches_leave_nothing_behind(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama", pblora=False)
    engine = build(world.family, kv_memory=1 << 18)
    collector = Collector()
    steering = {**STEERING, "candidates": 5, "block_length": 3}
    for index in range(4):
        engine.submit(world.request(f"r{index}", steering, world.prompts(rng), max_tokens=30, seed=index), collector)
    steps = rng.randint(1, 25)
    drain(engine, until=lambda: engine.stats().steps >= steps)
    engine.cancel("r1")
    drain(engine)
    assert not engine.led and not engine._sequences
    assert engine.stats().running == engine.stats().waiting == 0
    assert all(collector.reason(f"r{index}") == "length" for index in (0, 2, 3))
    assert not collector.finished("r1")
    # A value that is not finite ends its request with an error, and no other one.
    for head in world.family.heads.values():
        head.weight.fill_(torch.nan)
    good = world.request("good", {"method": "base"}, world.prompts(rng))
    bad = world.request("bad", steering, world.prompts(rng))
    outputs = serve(engine, [good, bad])
    assert outputs["bad"][-1].finish_reason == "error" and outputs["good"][-1].finish_reason == "length"
    assert not engine.led and not engine._sequences
