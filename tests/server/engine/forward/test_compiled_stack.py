"""Compiled layers inside the engine: the same answers as the layers they stand for, and only where they can."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_requests import World
from seeds import fresh_seed
from tiny_engine import alone, build, family_of, make_request, serve

from ladle.kernels import dispatch
from ladle.kernels.cpu.tiles import has_pairs
from ladle.server.engine import engine_config
from ladle.server.engine.engine import Engine
from ladle.server.engine.forward import compiled_stack as decoder_stack
from ladle.server.engine.forward.compiled_stack import DecoderStack
from ladle.server.engine.forward.loaded_model import LoadedModel

COMPILED = {"llama": True, "mistral": True, "qwen2": True, "qwen3": False, "gemma2": False, "phi3": False}


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether activations are bfloat16, as on a processor that multiplies it, or float32 as on others."""
    has: bool = request.param
    if has and not has_pairs():
        pytest.skip("needs a processor that multiplies pairs of bfloat16")
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: has)
    return has


def model_of(engine: Engine) -> LoadedModel:
    return engine.runner.models.base


def stacks(engine: Engine) -> list[DecoderStack]:
    return [module for module in model_of(engine).model.modules() if isinstance(module, DecoderStack)]


@pytest.fixture
def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that compiled layers took."""
    seen: list[int] = []
    run = DecoderStack._run

    def spy(self: DecoderStack, hidden: Any, *rest: Any) -> Any:
        seen.append(hidden.shape[1])
        return run(self, hidden, *rest)

    monkeypatch.setattr(DecoderStack, "_run", spy)
    return seen


@pytest.mark.parametrize("arch", COMPILED)
def test_which_models_are_compiled(tmp_path: Path, arch: str) -> None:
    engine = build(family_of(tmp_path, arch, full=()), dtype="bfloat16")
    assert len(stacks(engine)) == COMPILED[arch]


@pytest.mark.parametrize("options", [{"compiled_layers": False}, {"dtype": "float32"}, {"dtype": "float64"}])
def test_they_can_be_turned_off_and_exact_dtypes_have_none(tmp_path: Path, options: dict[str, Any]) -> None:
    assert not stacks(build(family_of(tmp_path), **{"dtype": "bfloat16", **options}))


def test_it_takes_no_memory_of_its_own(tmp_path: Path, native: bool) -> None:
    family = family_of(tmp_path)
    plain = build(family, dtype="bfloat16", compiled_layers=False)
    assert model_of(build(family, dtype="bfloat16")).nbytes == model_of(plain).nbytes


def test_where_nothing_can_be_compiled_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "can_compile", lambda: False)
    assert not stacks(build(family_of(tmp_path), dtype="bfloat16"))


def test_a_stack_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = DecoderStack._run
    monkeypatch.setattr(DecoderStack, "_run", lambda *arguments: run(*arguments) * 1.1)
    assert not stacks(build(family_of(tmp_path), dtype="bfloat16"))


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2"])
def test_every_method_scores_what_it_scores_without_them(
    tmp_path: Path, arch: str, native: bool, rows_seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode, chunks of prompts and candidates, one batch of all methods: logprobs within the roundings of those that
    plain layers give in float32."""
    rng = random.Random(fresh_seed())
    sliding = {"mistral": {"sliding_window": 11}}.get(arch, {})
    world = World(tmp_path, rng, arch, **sliding)

    def engine(on: bool) -> Engine:
        return build(
            world.family, dtype="bfloat16", compiled_layers=on, prefix_cache=False, max_batch_tokens=24,
            max_lanes=200, max_sequences=40, kv_memory=32 << 20,
        )  # fmt: skip

    compiled = engine(True)
    monkeypatch.setattr(engine_config, "cpu_has_bfloat16", lambda: False)
    plain = engine(False)
    assert stacks(compiled) and not stacks(plain)
    steerings = [rng.choice(world.steerings(rng, [method])) for method in ("base", "bone_soup", "mage", "cfg", "vas")]
    requests = [
        world.request(str(index), steering, world.prompts(rng), max_tokens=6, temperature=0.0, logprobs=5)
        for index, steering in enumerate(steerings)
    ]
    together = serve(compiled, requests, rng)
    assert min(rows_seen) < max(rows_seen)
    apart = []
    for request in requests:
        for got, wanted in zip(together[request.request_id], alone(plain, request), strict=True):
            assert got.logprob is not None and wanted.logprob is not None
            if got.token == wanted.token or request.plan.scorer is None:
                apart.append(abs(got.logprob - wanted.logprob))
            if got.token != wanted.token:
                # As good as each other, and from here on another text; where values are asked about some candidates
                # only, roundings also decide which ones, and a candidate that only one side asks about may win by far.
                break
    # Guidance multiplies what bfloat16 rounds away.
    assert statistics.median(apart) < (0.1 if native else 1e-3) and max(apart) < (0.6 if native else 5e-3)


def test_rows_of_a_long_prompt_go_in_parts(
    tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch, rows_seen: list[int]
) -> None:
    monkeypatch.setattr(dispatch, "tiled_rows", lambda *model: dispatch.ALL_ROWS)
    family = family_of(tmp_path)
    request = make_request("r", range(3, 190), max_tokens=3)
    whole = alone(build(family, dtype="bfloat16"), request)
    monkeypatch.setattr(decoder_stack, "TOGETHER", 50)
    rows_seen.clear()
    parts = alone(build(family, dtype="bfloat16"), request)
    assert [output.logprob for output in parts] == [output.logprob for output in whole]
    assert rows_seen[-3:] == [187, 1, 1]


def test_more_rows_take_the_plain_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_seen: list[int]) -> None:
    """Where another product is the quicker one for many rows: how many these are is tried on the layers."""
    monkeypatch.setattr(dispatch, "tiled_rows", lambda *model: 2)
    monkeypatch.setattr(decoder_stack, "_CHOSEN", {})
    monkeypatch.setattr(DecoderStack, "_is_quicker", lambda stack, count: count <= 64)
    engine = build(family_of(tmp_path), dtype="bfloat16")
    rows_seen.clear()
    outputs = alone(engine, make_request("r", range(3, 190), max_tokens=3))
    assert len(outputs) == 3 and rows_seen == [1, 1]


def test_up_to_how_many_rows_is_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = model_of(build(family_of(tmp_path), dtype="bfloat16")).model.model.layers[0]
    for most, chosen in ((1, 1), (2, 2), (8, 8), (15, 8), (16, 16), (100, 64), (9999, 256)):
        monkeypatch.setattr(DecoderStack, "_is_quicker", lambda stack, count, most=most: count <= most)
        assert stack._quickest_rows() == chosen, most
    monkeypatch.undo()
    assert stack._is_quicker(4) in (True, False), "both forms run"


def test_weights_that_give_no_numbers_are_that_requests_error(tmp_path: Path) -> None:
    engine = build(family_of(tmp_path), dtype="bfloat16")
    torch.nn.init.constant_(model_of(engine).model.get_input_embeddings().weight[7:8], torch.nan)
    outputs = serve(engine, [make_request("bad", [7]), make_request("good", [8, 9])], random.Random(0))
    assert outputs["bad"][-1].error and not outputs["good"][-1].error
