"""Steps on a GPU: nothing on the wrong side, and one wait a step, for its tokens. Where there is no GPU, on a simulated
one; its kernels run interpreted."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_requests import World
from routed_folder import write_routed_family
from routed_requests import request as routed_request
from routed_requests import steerings as routed_steerings
from seeds import fresh_seed
from simulated_gpu import OnDevice, SimulatedGpu, simulated
from tiny_engine import Collector, build, drain, make_request, random_prompt, serve
from tiny_models import write_tiny_base
from vector_folder import write_vectors

pytest.importorskip("triton", reason="Triton is not on this platform")

from triton_interpreter import MARKS

from ladle.merging.family.family import Family, load_family
from ladle.server.engine.device.transfers import Fields, read, send
from ladle.server.engine.engine import Engine
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec
from ladle.server.engine.graphs import decode_graphs
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.scores.slot_tables import SOURCES

CUDA = torch.cuda.is_available()
pytestmark = MARKS
HERE = "device/transfers.py"
"""Where a step may wait."""


class Watched:
    """Engines on the GPU, step by step."""

    def __init__(self, gpu: SimulatedGpu | None) -> None:
        self.gpu = gpu
        self.steps: list[tuple[bool, Counter[str], Counter[str], Counter[str]]] = []
        """Of every step: whether it only decoded, its calls, waits and copies; for a simulated GPU."""
        self._engines: list[Engine] = []

    def engine(self, family: Family, *, trusted: bool = False, **options: Any) -> Engine:
        """``trusted``: recordings are not compared with what they were made of. On a simulated GPU they are just that,
        and the comparison takes four times as long as the test; others make it."""
        trust = pytest.MonkeyPatch()
        if trusted and self.gpu is not None:
            trust.setattr(decode_graphs.DecodeGraphs, "agrees", lambda graphs: True)
        engine = build(family, compiled_layers=False, device="cuda", max_lanes=80, max_context=64, **options)
        trust.undo()
        self._engines.append(engine)
        return engine

    def serve(self, engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, list[StepOutput]]:
        collector = Collector()
        for request in requests:
            engine.submit(request, collector)
        # What a GPU is made to wait for without saying so, raises there.
        with strict() if self.gpu is None else nullcontext():
            while engine.stats().running or engine.stats().waiting:
                if self.gpu is not None:
                    self.gpu.forget()
                prefilled = bool(engine.stats().waiting) or any(
                    lane.row is not None and len(s.output) == 0 for s in engine.scheduler.running for lane in s.lanes
                )
                if engine.step() and self.gpu is not None:
                    self.steps.append((not prefilled, self.gpu.calls, self.gpu.waits, self.gpu.copies))
        drain(engine)
        return collector.outputs

    def close(self) -> None:
        for engine in self._engines:
            engine.shutdown()


@contextmanager
def strict() -> Iterator[None]:
    """Calls that wait for a real GPU raise."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    if CUDA:
        found = Watched(None)
        yield found
        found.close()
        return
    with simulated(monkeypatch) as gpu:
        found = Watched(gpu)
        yield found
        found.close()


def guided(world: World, rng: random.Random) -> list[GenerationRequest]:
    """Every kind of plan, every kind of wish."""
    prompts = world.prompts(rng, 12)
    shared: dict[str, Any] = {"max_tokens": 3, "seed": rng.getrandbits(63)}
    methods = ("base", "bone_soup", "mage", "mod", "contrastive", "cfg", "cd", "custom")
    requests = [
        world.request(f"{index}", steering, prompts, **shared, temperature=rng.choice([0.0, 0.8]))
        for index, steering in enumerate(world.some_steerings(rng, len(methods), methods))
    ]
    preference = dict.fromkeys(world.objectives, 1.0)
    mage = {"method": "mage", "preference": preference, "value": "both", "trace": True}
    requests.append(world.request("traced", mage, prompts, **shared))
    for name, options in {
        "alternatives": {"logprobs": 3, "temperature": 0.7},
        "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
        "bias": {"logit_bias": ((7, 3.0), (9, -100.0))},
        "cut": {"top_p": 0.8, "min_p": 0.01, "temperature": 0.9},
    }.items():
        requests.append(world.request(name, {"method": "base"}, prompts, **shared, **options))
    # More than a recording adds up.
    terms = [{"source": {"bone-positive": 0.1 * i}, "weight": rng.uniform(0.1, 0.4)} for i in range(1, SOURCES + 2)]
    many = {"method": "custom", "terms": [{"source": "base", "weight": 0.5}, *terms]}
    requests.append(world.request("many", many, prompts, **shared))
    assert len(requests[-1].plan.sources) > SOURCES
    return requests


def alike(found: dict[str, list[StepOutput]], expected: dict[str, list[StepOutput]]) -> None:
    assert found.keys() == expected.keys()
    for name, outputs in expected.items():
        assert all(output.error is None for output in found[name]), (name, found[name][-1].error)
        assert [(o.token, o.expert) for o in found[name]] == [(o.token, o.expert) for o in outputs], name
        assert [o.logprob for o in found[name]] == pytest.approx([o.logprob for o in outputs], abs=1e-3), name
        for one, other in zip(found[name], outputs, strict=True):
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            assert (one.trace is None) == (other.trace is None)
            if one.trace is not None and other.trace is not None:
                assert one.trace.shift == pytest.approx(other.trace.shift, abs=1e-3)
                assert one.trace.values == pytest.approx(other.trace.values, abs=1e-3)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_waits_once(recorded: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, num_hidden_layers=1)
    requests = guided(world, rng)
    compiler = GrammarCompiler(build(world.family).tokenizer, (2, 0))
    for name in ("0", "2"):  # without guidance, and with values of candidates
        bound = replace(requests[int(name)], request_id=f"bound {name}")
        requests.append(replace(bound, grammar=compiler.compile(GrammarSpec("regex", "(yes|no), [a-z]{9}"))))
    expected = serve(build(world.family, max_lanes=80, compiled_layers=False), requests)
    watched: Watched = request.getfixturevalue("watched")
    alike(watched.serve(watched.engine(world.family, cuda_graphs=recorded), requests), expected)
    for _, _, waits, _ in watched.steps:
        assert sum(waits.values()) <= 1 and all(HERE in place for place in waits), waits
    assert CUDA or sum(sum(waits.values()) for _, _, waits, _ in watched.steps) >= 3


def test_a_step_that_routes_waits_twice(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True, num_hidden_layers=1))
    requests = [
        routed_request(family, str(index), steering, random_prompt(rng, 2, 12), max_tokens=3)
        for index, steering in enumerate(routed_steerings(rng))
    ]
    expected = serve(build(family, max_lanes=80, compiled_layers=False), requests)
    watched: Watched = request.getfixturevalue("watched")
    alike(watched.serve(watched.engine(family), requests), expected)
    for _, _, waits, _ in watched.steps:
        assert sum(waits.values()) <= 2 and all(HERE in place for place in waits), waits


def test_a_recorded_step_is_a_copy_a_replay_and_a_wait(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, num_hidden_layers=1)
    prompts, preference = world.prompts(rng, 12), dict.fromkeys(world.objectives, 0.5)
    steerings: list[dict[str, Any]] = [
        {"method": "base"},
        {"method": "bone_soup", "preference": preference},
        {"method": "genarm", "preference": preference},
        {"method": "cfg", "strength": 0.7},
    ]
    requests = [
        world.request(f"{i}", steering, prompts, max_tokens=4, seed=i, temperature=i % 2, top_k=7 * (i % 3))
        for i, steering in enumerate(steerings)
    ]
    expected = serve(build(world.family, compiled_layers=False), requests)
    watched: Watched = request.getfixturevalue("watched")
    engine = watched.engine(world.family, trusted=True, cuda_graphs=True)
    alike(watched.serve(engine, requests), expected)
    decoded = [step for step in watched.steps if step[0]]
    assert CUDA or len(decoded) >= 3
    for _, calls, waits, copies in decoded:
        # There: everything that the step reads. Back: tokens and logprobs.
        assert calls == {"replay": 1, "copy": 3}
        assert sum(waits.values()) == 1
        assert sum(count for place, count in copies.items() if place.startswith("copy to the device")) == 1


def test_a_recorded_step_is_watched_in_the_same_wait(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, pblora=False, num_hidden_layers=1)
    prompts, preference = world.prompts(rng, 12), dict.fromkeys(world.objectives, 0.5)
    monitor = {"monitor": {"value": "score-positive", "above": 1e9, "hold": 2}}
    requests = [
        world.request(f"{i}", {**steering, **monitor}, prompts, max_tokens=4, seed=i, temperature=i % 2)
        for i, steering in enumerate([{"method": "base"}, {"method": "bone_soup", "preference": preference}])
    ]
    ended = {"method": "base", "monitor": {"value": "score-positive", "above": -1e9, "for": 2, "hold": 1}}
    requests.append(world.request("ended", ended, prompts, max_tokens=5))
    expected = serve(build(world.family, compiled_layers=False), requests)
    watched: Watched = request.getfixturevalue("watched")
    engine = watched.engine(world.family, trusted=True, cuda_graphs=True)
    found = watched.serve(engine, requests)
    alike(found, expected)
    assert found["ended"][-1].tripped is not None and found["ended"][-1].tripped.token == 2
    decoded = [step for step in watched.steps if step[0] and step[1].get("replay")]
    assert CUDA or decoded
    for _, _, waits, _ in decoded:
        assert sum(waits.values()) == 1


def test_steering_vectors_cost_no_wait(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = random.Random(seed := fresh_seed())
    write_tiny_base(tmp_path / "base", "llama", seed % 1000, num_hidden_layers=1)
    (tmp_path / "family.toml").write_text('name = "bare"\n[base]\nmodel = "base"\n')
    write_vectors(tmp_path, seed, layers=1)
    family = load_family(tmp_path)
    wishes = [{"calm": 1.5}, {"calm": -0.5, "loud": 0.7}, {}]
    requests = [
        make_request(f"{i}", random_prompt(rng, 2, 12), wish, max_tokens=3, seed=i, ignore_eos=True)
        for i, wish in enumerate(wishes)
    ]
    expected = serve(build(family, compiled_layers=False), requests)
    watched: Watched = request.getfixturevalue("watched")
    alike(watched.serve(watched.engine(family, trusted=True, cuda_graphs=True), requests), expected)
    decoded = [calls for only, calls, _, _ in watched.steps if only]
    assert CUDA or (decoded and all(calls == {"replay": 1, "copy": 3} for calls in decoded))
    assert CUDA or any(calls["_add"] == 1 for only, calls, _, _ in watched.steps if not only)
    for _, _, waits, _ in watched.steps:
        assert sum(waits.values()) == 1 and all(HERE in place for place in waits), waits


def test_a_router_chooses_within_a_recording(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed := fresh_seed())
    family = load_family(write_routed_family(tmp_path, seed=seed % 1000, defer=True, num_hidden_layers=1))
    preference = {"positive": 0.3, "simple": 0.7}
    route: dict[str, Any] = {"method": "fusion_route"}
    steerings = [
        {"method": "base"},
        {**route, "complement": rng.choice([0.0, 1.0]), "min_stay": 2},
        {**route, "complement": 0.4, "expert_weight": 1.5, "normalize": "sum", "preference": preference},
        {"method": "co_llm", "threshold": 0.5},
    ]
    requests = [
        routed_request(
            family, str(i), steering, random_prompt(rng, 2, 12), max_tokens=5, seed=i, temperature=i % 2, min_p=0.01
        )
        for i, steering in enumerate(steerings)
    ]
    options = {"expert_schedule": "eager"}
    expected = serve(build(family, compiled_layers=False, **options), requests)
    assert any(output.expert for outputs in expected.values() for output in outputs)
    watched: Watched = request.getfixturevalue("watched")
    if not CUDA:
        monkeypatch.setattr(decode_graphs, "LANES", (16,))
    engine = watched.engine(family, **options)
    (graphs,) = engine.runner._recorded.values()
    assert graphs.draws and graphs.routes
    alike(watched.serve(engine, requests), expected)
    decoded = [step for step in watched.steps if step[0]]
    assert CUDA or len(decoded) >= 4
    for _, calls, waits, _ in decoded:
        assert calls == {"replay": 1, "copy": 4} and sum(waits.values()) == 1


DTYPES = (np.bool_, np.int32, np.int64, np.float32, np.float64)


def test_arrays_arrive_as_they_were(watched: Watched) -> None:
    random = np.random.default_rng(fresh_seed())
    shapes = [(), (0,), (1,), (3, 0), (5, 7), (2, 3, 130)]
    arrays = [
        random.integers(0, 2 if dtype is np.bool_ else 99, shape).astype(dtype) for dtype in DTYPES for shape in shapes
    ]
    random.shuffle(arrays)  # type: ignore[arg-type]
    # Views and columns of others too.
    arrays.append(random.random((4, 6))[::2, ::3])
    found = send(arrays, torch.device("cuda"))
    assert all(tensor.is_cuda for tensor in found)
    for array, tensor in zip(arrays, read(*found), strict=True):
        assert np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype
    for array, tensor in zip(arrays, send(arrays, torch.device("cpu")), strict=True):
        assert np.array_equal(tensor.numpy(), array)
    assert read() == []


def test_fields_lie_apart() -> None:
    fields = Fields({"a": (np.dtype(np.int32), (3,)), "b": (np.dtype(np.float64), (2, 2)), "c": (np.dtype(bool), ())})
    staged, arrays = fields.staging(torch.device("cpu"))
    assert not staged.any() and fields.nbytes == 3 * 64
    arrays["a"][:] = [1, 2, 3]
    arrays["b"][:] = 0.5
    tensors = fields.tensors(staged)
    assert tensors["a"].tolist() == [1, 2, 3] and tensors["b"].tolist() == [[0.5, 0.5]] * 2 and not tensors["c"]


@pytest.mark.skipif(CUDA, reason="there is a GPU, which need not be simulated")
@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda there, here: there + here, "on the host"),
        (lambda there, here: torch.cat([there, here]), "on the host"),
        (lambda there, here: here.index_copy_(0, torch.tensor([0]), there[:1]), "on the host"),
        (lambda there, here: there.numpy(), "numpy of a tensor on the device"),
    ],
)
def test_the_simulation_keeps_host_and_device_apart(call: Callable[..., Any], complaint: str, watched: Watched) -> None:
    here = torch.ones(3)
    there = here.to("cuda")
    assert isinstance(there, OnDevice) and there.device.type == "cuda"
    with pytest.raises((RuntimeError, AssertionError), match=complaint):
        call(there, here)


@pytest.mark.skipif(CUDA, reason="there is a GPU, which need not be simulated")
@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (lambda there: there + 1, 0),
        (lambda there: there[1:], 0),
        (lambda there: there.index_select(0, torch.zeros(2, dtype=torch.int64, device="cuda")), 0),
        (lambda there: there.sum().item(), 1),
        (lambda there: bool(there[0] > 0), 1),
        (lambda there: there[there > 0], 1),
        (lambda there: there[[0, 1]], 1),
        (lambda there: there.tolist(), 1),
        (lambda there: there.cpu(), 1),
        (lambda there: torch.tensor([1.0], device="cuda"), 1),
        (lambda there: torch.ones(3).to("cuda", non_blocking=True), 1),
        (lambda there: torch.empty(3, pin_memory=True).to("cuda", non_blocking=True), 0),
        (lambda there: there.nonzero(), 1),
    ],
)
def test_the_simulation_counts_waits(call: Callable[..., Any], waits: int, watched: Watched) -> None:
    assert watched.gpu is not None
    there = torch.arange(3.0, device="cuda")
    watched.gpu.forget()
    call(there)
    assert sum(watched.gpu.waits.values()) == waits
