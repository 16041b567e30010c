"""The engine as asyncio sees it: streams that end, close and fail without holding anything up."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from seeds import fresh_seed
from tiny_engine import alone, assert_idle, build, family_of, make_request, random_prompt

from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.requests.queue import QueueFull
from ladle.server.engine.requests.request import GenerationRequest

PROMPT = tuple(range(10, 60))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


@pytest.fixture
def served(family: Family) -> Iterator[AsyncEngine]:
    engine = build(family)
    engine.start()
    yield AsyncEngine(engine)
    engine.shutdown()


def endless(name: str = "endless") -> GenerationRequest:
    return make_request(name, PROMPT, {"bone-positive": 0.3}, max_tokens=400, ignore_eos=True)


async def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        await asyncio.sleep(0.002)


async def all_free(served: AsyncEngine) -> None:
    def free() -> bool:
        stats = served.stats()
        return stats.blocks_free == stats.blocks_total and not served.engine._sequences and not served.engine._inbox

    await wait_for(free)
    assert_idle(served.engine)
    assert not served._queues


def test_many_streams_at_once_equal_each_alone(family: Family, served: AsyncEngine) -> None:
    rng = random.Random(fresh_seed())
    requests = [
        make_request(f"r{i}", random_prompt(rng, 1, 60), {"bone-positive": i / 10}, seed=i, max_tokens=12)
        for i in range(10)
    ]
    single = build(family, prefix_cache=False)
    expected = [[o.token for o in alone(single, request)] for request in requests]

    async def collect(request: GenerationRequest) -> list[int]:
        return [output.token async for output in served.stream(request)]

    async def main() -> list[list[int]]:
        results = await asyncio.gather(*map(collect, requests))
        await all_free(served)
        return results

    assert asyncio.run(main()) == expected


def test_closing_a_stream_frees_everything(served: AsyncEngine) -> None:
    async def main() -> None:
        stream = served.stream(endless())
        outputs = [await anext(stream) for _ in range(3)]
        assert [o.completion_tokens for o in outputs] == [1, 2, 3]
        steps = served.stats().steps
        await stream.aclose()
        await all_free(served)
        assert served.stats().steps <= steps + 300

    asyncio.run(main())


def test_leaving_the_loop_early_frees_everything(served: AsyncEngine) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            stream = served.stream(endless())
            try:
                async for output in stream:
                    if output.completion_tokens == 3:
                        raise ZeroDivisionError
            finally:
                await stream.aclose()
        await all_free(served)
        # A generator that is only dropped is closed by the loop.
        async for _output in served.stream(endless()):
            break
        await all_free(served)

    asyncio.run(main())


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancelling_the_task_frees_everything(served: AsyncEngine, after: int) -> None:
    async def main() -> None:
        seen = 0

        async def consume() -> None:
            nonlocal seen
            async for _ in served.stream(endless()):
                seen += 1

        task = asyncio.create_task(consume())
        await wait_for(lambda: seen >= after and bool(served._queues))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await all_free(served)

    asyncio.run(main())


def test_refusals_come_before_the_first_output(family: Family) -> None:
    engine = build(family, max_queue=1)  # not started, so that the queue stays full
    served = AsyncEngine(engine)

    async def main() -> None:
        with pytest.raises(InputError):
            await anext(served.stream(make_request("r", ())))
        first = asyncio.create_task(anext(served.stream(make_request("first", PROMPT))))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await anext(served.stream(make_request("r", PROMPT)))
        assert set(served._queues) == {"first"}
        with pytest.raises(ValueError, match="first"):
            await anext(served.stream(make_request("first", PROMPT)))
        assert set(served._queues) == {"first"}, "the first one goes on"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert not served._queues

    asyncio.run(main())
    assert not served.alive and not served.ready


def test_shutdown_ends_streams(served: AsyncEngine) -> None:
    async def main() -> None:
        async def consume(name: str) -> Any:
            return [output async for output in served.stream(endless(name))][-1].finish_reason

        tasks = [asyncio.create_task(consume(f"r{i}")) for i in range(3)]
        await wait_for(lambda: served.stats().running == 3)
        await asyncio.to_thread(served.engine.shutdown)
        assert await asyncio.gather(*tasks) == ["abort"] * 3
        with pytest.raises(RuntimeError):
            await anext(served.stream(endless("late")))

    asyncio.run(main())


def test_a_step_never_runs_on_the_loop_nor_holds_it_up(served: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model: the loop ticks on while steps take 50 ms."""
    threads = set()
    real = served.engine.runner.step

    def slow(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        time.sleep(0.05)
        return real(*args)

    monkeypatch.setattr(served.engine.runner, "step", slow)

    async def main() -> list[float]:
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.002)

        ticker = asyncio.create_task(tick())
        async for output in served.stream(make_request("r", PROMPT, max_tokens=10, ignore_eos=True)):
            assert output.prompt_tokens == len(PROMPT)
        ticker.cancel()
        return ticks

    ticks = asyncio.run(main())
    assert threads == {"ladle-engine"}
    gaps = sorted(b - a for a, b in itertools.pairwise(ticks))
    assert len(ticks) > 50 and gaps[len(gaps) // 2] < 0.02, "the loop waited for steps"


def test_a_slow_consumer_holds_up_nobody(served: AsyncEngine) -> None:
    async def main() -> None:
        slow = served.stream(endless("slow"))
        await anext(slow)
        quick = [o async for o in served.stream(make_request("quick", PROMPT, max_tokens=10, ignore_eos=True))]
        assert len(quick) == 10
        rest = [output async for output in slow]
        assert len(rest) == 399 and rest[-1].finish_reason == "length"

    asyncio.run(main())


def test_a_loop_that_is_gone_frees_its_requests(served: AsyncEngine) -> None:
    """The loop is closed in the middle of a stream without a chance to clean up."""
    loop = asyncio.new_event_loop()
    stream = served.stream(endless())
    loop.run_until_complete(anext(stream))
    loop.close()
    until = time.monotonic() + 60
    while served.stats().running:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert served.alive


def test_what_the_server_asks(served: AsyncEngine) -> None:
    assert served.alive and served.ready
    assert served.max_context == served.engine.max_context == 512
    assert served.tokenizer.eos_token == "<|im_end|>"
    assert served.stats().blocks_total == served.engine.blocks.total
