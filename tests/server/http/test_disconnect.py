"""A client that goes away frees what its request held, streamed or not, one choice or many."""

import asyncio
import json

import pytest
from asgi import Call, app_of, wait_until
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio
BODIES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, 1),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 3}, 3),
    ("/v1/completions", {"prompt": "hi"}, 1),
    ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}, 6),
    ("/v1/generate", {"prompt": "hi", "n": 2}, 2),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "sequences"), BODIES)
async def test_leaving_cancels_everything(
    family: Family, engine: FakeEngine, path: str, body: dict, sequences: int, stream: bool
) -> None:
    engine.hold_after = 2
    state = fake_state(family, engine)
    call = Call(app_of(state), path, json.dumps({**body, "stream": stream}).encode())
    await wait_until(lambda: len(engine.running) == sequences)
    if stream:
        await call.sent.wait()
    assert not call.task.done()
    call.leave()
    await asyncio.wait_for(call.task, 60)
    assert not engine.running and len(engine.cancelled) == sequences
    assert state.active == 0
    assert state.metrics.registry.get_sample_value("ladle_requests_cancelled_total") == sequences


async def test_leaving_together_with_an_output_is_no_less_leaving(family: Family, engine: FakeEngine) -> None:
    """At every turn of the loop once: a cancellation must not get lost where it meets a token."""
    engine.hold_after = 2
    for turns in range(40):
        call = Call(app_of(fake_state(family, engine)), "/v1/generate", b'{"prompt": "a"}')
        await wait_until(lambda: engine.running)
        for _ in range(turns):
            await asyncio.sleep(0)
        call.leave()
        await asyncio.wait_for(call.task, 60)
        assert not engine.running


async def test_leaving_before_the_first_token(family: Family, engine: FakeEngine) -> None:
    engine.hold_after = 0
    for stream in (False, True):
        call = Call(
            app_of(fake_state(family, engine)), "/v1/generate", json.dumps({"prompt": "a", "stream": stream}).encode()
        )
        await wait_until(lambda: engine.running)
        call.leave()
        await asyncio.wait_for(call.task, 60)
        assert not engine.running


async def test_a_client_that_stops_reading_is_noticed_when_it_leaves(family: Family, engine: FakeEngine) -> None:
    """The stream is stuck in a write, not in the engine."""
    state = fake_state(family, engine)
    call = Call(app_of(state), "/v1/generate", b'{"prompt": "a", "stream": true}', stuck=True)
    await asyncio.wait_for(call.sent.wait(), 5)
    call.leave()
    await asyncio.wait_for(call.task, 60)
    assert not engine.running and state.active == 0


async def test_a_server_that_gives_up_a_request_frees_it_too(family: Family, engine: FakeEngine) -> None:
    """uvicorn cancels the tasks that outlive its shutdown."""
    engine.hold_after = 1
    for stream in (False, True):
        state = fake_state(family, engine)
        call = Call(app_of(state), "/v1/generate", json.dumps({"prompt": "a", "stream": stream}).encode())
        await wait_until(lambda: engine.running)
        await asyncio.sleep(0.02)
        call.task.cancel()
        await asyncio.wait([call.task], timeout=60)
        assert not engine.running and state.active == 0


async def test_a_finished_request_cancels_nothing(family: Family, engine: FakeEngine) -> None:
    for stream in (False, True):
        state = fake_state(family, engine)
        call = Call(app_of(state), "/v1/generate", json.dumps({"prompt": "a", "stream": stream}).encode())
        await asyncio.wait_for(call.task, 60)
        assert call.status == 200 and not engine.cancelled
        assert state.metrics.registry.get_sample_value("ladle_requests_cancelled_total") == 0
