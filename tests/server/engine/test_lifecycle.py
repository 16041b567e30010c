"""Starting, stopping, many threads, many requests."""

import random
import threading
import time
from collections.abc import Iterator

import pytest
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, family_of, make_request, random_prompt, wait_for

from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine

PROMPT = tuple(range(10, 60))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


@pytest.fixture
def running(family: Family) -> Iterator[Engine]:
    engine = build(family)
    engine.start()
    yield engine
    engine.shutdown()


def test_shutdown_delivers_an_end_to_everybody(family: Family) -> None:
    engine = build(family, max_sequences=2)
    collector = Collector()
    engine.start()
    for index in range(6):
        engine.submit(make_request(f"r{index}", PROMPT, max_tokens=400, ignore_eos=True), collector)
    wait_for(lambda: "r0" in collector.outputs)
    engine.submit(make_request("last", PROMPT), collector)
    engine.shutdown()
    assert not engine.alive
    assert {collector.reason(f"r{i}") for i in range(6)} == {"abort"} and collector.finished("last")
    assert_idle(engine)
    with pytest.raises(RuntimeError):
        engine.submit(make_request("late", PROMPT), collector)
    engine.shutdown()  # again is fine


def test_shutdown_forgets_nothing_that_was_just_submitted(family: Family) -> None:
    for _ in range(10):
        engine = build(family)
        collector = Collector()
        engine.start()
        threading.Thread(target=engine.shutdown).start()
        sent = 0
        try:
            for index in range(50):
                engine.submit(make_request(f"r{index}", PROMPT, max_tokens=50), collector)
                sent += 1
        except RuntimeError:
            pass
        wait_for(lambda engine=engine: not engine.alive)
        wait_for(lambda collector=collector, sent=sent: all(collector.finished(f"r{i}") for i in range(sent)), 2)


def test_shutdown_with_a_deadline_lets_requests_finish(family: Family) -> None:
    engine = build(family)
    collector = Collector()
    engine.start()
    engine.submit(make_request("r", PROMPT, max_tokens=30, ignore_eos=True), collector)
    engine.shutdown(deadline_s=30)
    assert collector.reason("r") == "length" and len(collector.tokens("r")) == 30


def test_many_threads(running: Engine) -> None:
    """Submitting, cancelling and asking for numbers from many threads at once."""
    seed = fresh_seed()
    collectors = [Collector() for _ in range(6)]
    cancelled: list[set[str]] = [set() for _ in range(6)]
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        rng = random.Random(seed + worker)
        try:
            for index in range(12):
                name = f"{worker}-{index}"
                running.submit(
                    make_request(name, random_prompt(rng, 1, 80), {"bone-positive": rng.random()}), collectors[worker]
                )
                stats = running.stats()
                assert 0 <= stats.blocks_free <= stats.blocks_total
                if rng.random() < 0.3:
                    cancelled[worker].add(name)
                    running.cancel(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    wanted = [(w, f"{w}-{i}") for w in range(6) for i in range(12) if f"{w}-{i}" not in cancelled[w]]
    wait_for(lambda: all(collectors[worker].finished(name) for worker, name in wanted))
    wait_for(lambda: running.stats().running == running.stats().waiting == 0 and not running._inbox)
    time.sleep(0.02)
    assert_idle(running)
    assert all(o.finish_reason != "error" for c in collectors for outputs in c.outputs.values() for o in outputs)


def test_nothing_grows_with_the_number_of_requests(family: Family) -> None:
    rng = random.Random(fresh_seed())
    engine = build(family, kv_memory=1 << 18, max_sequences=4)
    sizes = []
    for _ in range(4):
        names = [f"r{i}" for i in range(50)]
        collector = Collector()
        for name in names:
            penalty = rng.choice([1.0, 1.1])
            options = {"max_tokens": 3, "repetition_penalty": penalty}
            prompt = random_prompt(rng, 1, 40)
            engine.submit(make_request(name, prompt, {"bone-positive": rng.random()}, **options), collector)
        drain(engine)
        assert_idle(engine)
        scheduler = engine.scheduler
        assert not scheduler._admitted and len(scheduler._slots) == 4 and not scheduler.take_fresh()
        assert len(engine.sampler._counts) <= 4
        assert len(engine.blocks._hash_of) == len(engine.blocks._block_of) <= engine.blocks.total
        sizes.append(len(engine.room.rate))
    assert sizes[-1] <= 64
