"""Engines whose models are shared by several processes: the same answers, and nobody left behind when one ends."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from guided_requests import ROOMY, World, random_requests
from prepared_process import PREPARED
from routed_folder import write_routed_family
from routed_requests import request as routed_request
from routed_requests import steerings as routed_steerings
from seeds import fresh_seed
from server_process import serve_family
from tiny_engine import Collector, build, drain, family_of, make_request, random_prompt, serve, wait_for
from tiny_models import write_family

from ladle.guidance.plan import PromptView
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.ranks.ranks import RankLost
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.thinking import Thinking, Verifier

SHARED: dict[str, Any] = {"dtype": "float64", "tensor_parallel": 2}


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.server.engine.ranks.ranks.subprocess", PREPARED)


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(family: Family, **options: Any) -> Engine:
        made.append(build(family, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()


def processes(engine: Engine) -> list[subprocess.Popen]:
    assert engine.models._ranks is not None
    return engine.models._ranks._processes


def same(found: dict[str, list[StepOutput]], expected: dict[str, list[StepOutput]]) -> None:
    for name, outputs in expected.items():
        assert [output.token for output in found[name]] == [output.token for output in outputs], name
        assert [o.logprob for o in found[name]] == pytest.approx([o.logprob for o in outputs], abs=1e-9), name


def serve_both(
    family: Family, requests: list[GenerationRequest], engines: Callable[..., Engine], **options: Any
) -> Engine:
    """Serve ``requests`` with one process and with two, which must give the same; the engine of the two."""
    expected = serve(engines(family, dtype="float64", **options), requests)
    assert all(outputs[-1].error is None for outputs in expected.values())
    shared = engines(family, **SHARED, **options)
    same(serve(shared, requests), expected)
    return shared


def led_requests(rng: random.Random, world: World) -> list[GenerationRequest]:
    """Answers that are searched, ranked and watched, and a thought with a verifier: of several sequences each."""
    doubt, mixed = PromptView("doubt", "Done?"), {"method": "bone_soup", "preference": {"positive": 0.7, "simple": 0.3}}
    draws = {"entropy": [1.0, 5.0], "most": 3}
    leading: list[dict[str, Any]] = [
        {"search": {"by": by, "until": until, "draws": 3 if beam == 1 else draws, "beam": beam}}
        for by, until, beam in (("explicit", 3, 1), ("implicit", "sentence", 2), ("likelihood", 4, 2))
    ]
    leading += [{"rank": {"by": "explicit"}}, {"monitor": {"value": "score-positive", "above": 1e9, "hold": 3}}, {}]
    made = [
        world.request(f"led{index}", {**mixed, **own}, world.prompts(rng), max_tokens=9, seed=rng.getrandbits(40))
        for index, own in enumerate(leading)
    ]
    verifier = Verifier(1, rng.choice([0.0, 0.5]), doubt)
    thinking = Thinking((5,), (8, 9), None, (7,), opened=True, verifier=verifier)
    budget = replace(thinking, budget=4, verifier=None)
    verified = replace(made[-1], thinking=thinking, views={**made[-1].views, doubt: random_prompt(rng, 5, 9)})
    return [*(replace(one, thinking=budget) for one in made[:3]), *made[3:-1], verified]


@pytest.mark.parametrize(("arch", "kind"), [("llama", "singles"), ("phi3", "rows")])
def test_guided_requests_get_what_one_process_gives(
    arch: str, kind: str, tmp_path: Path, engines: Callable[..., Engine]
) -> None:
    rng = random.Random(fresh_seed())
    world = World(tmp_path, rng, arch, kind=kind)
    requests = [*random_requests(rng, world, each=1), *led_requests(rng, world)]
    shared = serve_both(world.family, requests, engines, **ROOMY)
    if kind == "singles":  # has a value with full weights
        before = shared.stats().merges
        assert before.misses > 0 and shared.store.drop_unused() > 0
        serve(shared, requests)
        assert shared.stats().merges.misses > before.misses
    started = processes(shared)
    assert len(started) == 1 and all(process.poll() is None for process in started)
    shared.shutdown()
    assert [process.poll() for process in started] == [0]


def test_routed_requests_get_what_one_process_gives(tmp_path: Path, engines: Callable[..., Engine]) -> None:
    rng = random.Random(fresh_seed())
    family = load_family(write_routed_family(tmp_path, "llama", rng.randrange(1000), defer=True))
    requests = [
        routed_request(family, str(index), steering, random_prompt(rng, 1, 40), seed=index, temperature=index % 2)
        for index, steering in enumerate(routed_steerings(rng))
    ]
    shared = serve_both(family, requests, engines, **ROOMY)
    # What fails while all compute leaves the others somewhere else, and no answer can be trusted any more.
    ranks, collector = shared.models._ranks, Collector()
    assert ranks is not None
    with pytest.raises(ZeroDivisionError), ranks.together({"do": "clear", "model": "", "blocks": [1]}):
        raise ZeroDivisionError
    shared.submit(requests[0], collector)
    with pytest.raises(RankLost, match="ZeroDivisionError in what the processes"):
        drain(shared)
    assert collector.reason("0") == "error"


@pytest.mark.parametrize("busy", [True, False])
def test_a_process_that_ends_ends_the_engine(busy: bool, tmp_path: Path, engines: Callable[..., Engine]) -> None:
    engine, collector = engines(family_of(tmp_path), **SHARED), Collector()
    engine.start()
    if busy:
        engine.submit(make_request("long", range(10, 30), max_tokens=400, ignore_eos=True), collector)
    engine.submit(make_request("short", range(10, 30), max_tokens=2), collector)
    wait_for(lambda: collector.finished("short"))
    (process,) = processes(engine)
    process.kill()
    wait_for(lambda: not engine.alive)
    assert not busy or collector.reason("long") == "error"
    with pytest.raises(RuntimeError, match="shutting down"):
        engine.submit(make_request("late", range(10, 30)), collector)


def test_a_server_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    def children(of: int) -> list[int]:
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(of)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    with serve_family(write_family(tmp_path), "--tensor-parallel", "2", "--kv-memory", "8MiB") as server:
        said = httpx.post(
            f"{server.url}/v1/generate",
            json={"prompt": "the rain", "steering": {"method": "bone_soup", "preference": {"positive": 1}}},
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=60,
        )
        assert said.status_code == 200, said.text
        # The other half of the model, and what compiles grammars.
        left = children(server.process.pid)
        assert left
        os.kill(server.process.pid, signal.SIGKILL)
        until = time.monotonic() + 20
        while (left := [pid for pid in left if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left


def test_what_cannot_be_shared_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a process was started")

    never_there = SimpleNamespace(**{**vars(subprocess), "Popen": never})
    monkeypatch.setattr("ladle.server.engine.ranks.ranks.subprocess", never_there)
    with pytest.raises(InputError, match=r"tensor_parallel.*0.*>= 1"):
        build(family_of(tmp_path / "plain"), tensor_parallel=0)


def test_processes_that_cannot_begin_or_load_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONHOME", "/nowhere")
        with pytest.raises(RankLost, match="process 1 of the model ended while it loaded"):
            build(family, tensor_parallel=2)
    (tmp_path / "family.toml").write_text(
        (tmp_path / "family.toml").read_text().replace('name = "only-simple"', 'name = "only-plain"')
    )
    with pytest.raises(RankLost, match="process 1 of the model loaded something else"):
        build(family, tensor_parallel=2)


def test_processes_that_find_they_cannot_share_end(tmp_path: Path) -> None:
    """What only the loaded model shows: two key/value heads are not for three."""
    family = family_of(tmp_path)
    with pytest.raises(InputError, match=r"tensor_parallel.*3.*a divisor of 4, the attention heads"):
        build(family, tensor_parallel=3)
