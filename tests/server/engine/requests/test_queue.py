"""How much may wait, and what is said to those who find no place."""

import random
import threading
from pathlib import Path

import pytest
from guided_requests import World
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, family_of, make_request

from ladle.merging.family.family import Family
from ladle.server.engine.requests.queue import QueueFull, Ticket, WaitingRoom

PROMPT = tuple(range(10, 60))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(room: WaitingRoom, tokens: int) -> float:
    with pytest.raises(QueueFull) as caught:
        room.enter(tokens)
    assert str(room.requests) in str(caught.value) and str(room.tokens) in str(caught.value)
    return caught.value.retry_after_s


def test_requests_that_come_at_once_share_the_places() -> None:
    """Seen and taken in one act: with 16 threads at the door nobody gets in beyond the limit."""
    room, start = WaitingRoom(7, 1000), threading.Barrier(16)
    got: list[Ticket | None] = []

    def come() -> None:
        start.wait()
        for _ in range(50):
            try:
                got.append(room.enter(1))
            except QueueFull:
                got.append(None)

    threads = [threading.Thread(target=come) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tickets = [ticket for ticket in got if ticket is not None]
    assert len(tickets) == 7 == room.requests and len(got) == 800
    for ticket in tickets * 2:  # leaving twice is leaving once
        ticket.leave()
    assert room.requests == room.tokens == 0


def test_tokens_are_bounded_too_and_a_long_one_goes_alone() -> None:
    room = WaitingRoom(100, 1000)
    long = room.enter(5000)
    refused(room, 1)
    long.leave()
    first, second = room.enter(600), room.enter(400)
    refused(room, 1)
    second.leave()
    room.enter(400)
    first.leave()
    assert room.tokens == 400


def test_when_to_come_back_is_measured_while_something_waits() -> None:
    rng = random.Random(fresh_seed())
    clock = Clock()
    room = WaitingRoom(20, 10**9, clock)
    pace = rng.uniform(0.5, 20)  # seconds a request
    tickets = [room.enter(10) for _ in range(20)]
    assert refused(room, 10) == 1, "nothing is known yet"
    for _ in range(30):
        clock.now += pace
        tickets.pop(0).leave()
        tickets.append(room.enter(10))
    # Half of 20 requests at the measured pace.
    assert refused(room, 10) == pytest.approx(min(600, max(1, 10 * pace)), rel=1e-9)
    while tickets:
        tickets.pop().leave()
    clock.now += 86_400  # nobody comes for a day, which says nothing of the pace
    tickets = [room.enter(10) for _ in range(20)]
    clock.now += pace
    tickets.pop().leave()
    room.enter(10)
    assert refused(room, 10) < 10 * pace + 1
    clock.now += 1000 * pace  # it has come to a halt
    assert refused(room, 10) > 100 * min(pace, 1) and refused(room, 10) <= 600


def test_a_long_prompt_waits_for_the_tokens_it_needs() -> None:
    clock = Clock()
    room = WaitingRoom(100, 1000, clock)
    tickets = [room.enter(100) for _ in range(10)]
    for _ in range(8):
        clock.now += 2
        tickets.pop(0).leave()
        tickets.append(room.enter(100))
    # 100 tokens leave in 2 s. A short request waits for half of the queue, one of 900 for 900 of its tokens.
    assert refused(room, 1) == pytest.approx(10)
    assert refused(room, 900) == pytest.approx(18)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


def test_whoever_has_had_its_turn_waits_no_more(family: Family) -> None:
    """Run, cancelled while waiting, cancelled while running, refused for its id, failed, preempted: all give their
    places back."""
    engine = build(family, max_queue=6, max_queue_tokens=2 * len(PROMPT) * 5, max_sequences=2)
    collector = Collector()
    for name in ("run", "running", "waiting", "same", "same"):
        engine.submit(make_request(name, PROMPT, max_tokens=8, ignore_eos=True), collector)
    assert engine.room.requests == 5 and engine.room.tokens == 5 * len(PROMPT)
    engine.step()
    engine.step()
    assert engine.room.requests == 2, "two run, one had a name that was taken"
    engine.cancel("waiting")
    engine.cancel("running")
    drain(engine)
    assert collector.finished("run") and collector.finished("same")
    assert engine.room.requests == engine.room.tokens == 0
    assert_idle(engine)


def test_sources_count_by_themselves(family: Family) -> None:
    engine = build(family, max_queue_tokens=4 * len(PROMPT))
    for index in range(2):
        request = make_request(f"r{index}", PROMPT, {"bone-positive": 1.0}, trace=True)
        engine.submit(request, Collector())
    with pytest.raises(QueueFull, match=f"{4 * len(PROMPT)} prompt tokens"):
        engine.submit(make_request("r2", PROMPT), Collector())
    drain(engine)


def test_a_search_for_blocks_has_one_place(tmp_path: Path) -> None:
    """It is made of many sequences; its place is free when the first of them runs, or when it is given up."""
    world = World(tmp_path, rng := random.Random(fresh_seed()), "llama", pblora=False)
    engine = build(world.family, max_queue=2)
    steering = {"method": "cd", "preference": {"positive": 1.0}, "candidates": 4, "block_length": 3}
    for name in ("a", "b"):
        engine.submit(world.request(name, steering, world.prompts(rng), max_tokens=6), Collector())
    assert engine.room.requests == 2
    with pytest.raises(QueueFull):
        engine.submit(make_request("c", PROMPT), Collector())
    engine.cancel("b")
    engine.step()
    assert engine.room.requests == 0
    drain(engine)
    assert_idle(engine)
