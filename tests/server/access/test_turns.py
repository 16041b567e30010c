"""Threads that callers take in turns."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asgi import wait_until
from seeds import fresh_seed

from ladle.server.access.turns import MOST_WAITING, FairPool
from ladle.server.api_errors import ApiError

pytestmark = pytest.mark.anyio


@contextmanager
def held(pool: FairPool) -> Iterator[None]:
    """One thread of ``pool`` is busy."""
    go = threading.Event()
    work = asyncio.ensure_future(pool.run("holder", go.wait))
    try:
        yield
    finally:
        go.set()
        work.add_done_callback(lambda _: None)


async def test_callers_take_turns() -> None:
    """However many pieces one of them has: each other caller's first piece is among the first, its second among the
    second ones."""
    rng = random.Random(fresh_seed())
    wants = {"greedy": 100, **{f"caller {number}": rng.randint(1, 4) for number in range(rng.randint(1, 5))}}
    order: list[tuple[str, int]] = []
    pool = FairPool(1)
    with held(pool):
        tasks = [
            asyncio.ensure_future(pool.run(name, order.append, (name, number)))
            for name, count in wants.items()
            for number in range(count)
        ]
        await wait_until(lambda: pool.waiting == sum(wants.values()))
    await asyncio.gather(*tasks)
    assert [number for _, number in order] == sorted(number for _, number in order)
    assert pool.waiting == 0
    for name, count in wants.items():
        assert [number for other, number in order if other == name] == list(range(count))


async def test_what_is_given_up_is_not_begun() -> None:
    done: list[int] = []
    pool = FairPool(1)
    with held(pool):
        tasks = [asyncio.ensure_future(pool.run("alice", done.append, number)) for number in range(20)]
        await wait_until(lambda: pool.waiting == 20)
        for task in tasks[::2]:
            task.cancel()
        await wait_until(lambda: pool.waiting == 10)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == list(range(1, 20, 2))
    assert await pool.run("alice", lambda: 7) == 7, "no thread was lost"


async def test_errors_are_the_callers() -> None:
    def fails() -> None:
        raise KeyError("x")

    pool = FairPool(2)
    for _ in range(5):
        with pytest.raises(KeyError):
            await pool.run("alice", fails)
    assert await pool.run("alice", lambda: 7) == 7


async def test_one_caller_may_have_so_many_waiting() -> None:
    pool = FairPool(1)
    with held(pool):
        tasks = [asyncio.ensure_future(pool.run("alice", int)) for _ in range(MOST_WAITING)]
        await wait_until(lambda: pool.waiting == MOST_WAITING)
        with pytest.raises(ApiError) as caught:
            await pool.run("alice", int)
        assert caught.value.status_code == 429 and caught.value.headers == {"Retry-After": "1"}
        other = asyncio.ensure_future(pool.run("bob", lambda: 7))
        await wait_until(lambda: pool.waiting == MOST_WAITING + 1)
    assert await other == 7
    await asyncio.gather(*tasks)
