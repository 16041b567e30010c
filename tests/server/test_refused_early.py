"""What cannot be queued is refused before it is read."""

import asyncio

import pytest
from asgi import Call, app_of, client_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys
from ladle.server.access.callers import GENERATE, Caller, Limits
from ladle.server.app import build_app
from ladle.server.engine.requests.queue import QueueFull, WaitingRoom
from ladle.server.hosting import Hosted
from ladle.server.serving import Serving

pytestmark = pytest.mark.anyio


class OneKey(ApiKeys):
    """Everybody who sends a key is ``caller``."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def find(self, key: str) -> Caller:
        return self._caller


GENERATING = [
    "/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/score", "/v1/responses", "/v1/messages"
]  # fmt: skip


@pytest.mark.parametrize("path", GENERATING)
async def test_a_full_queue_answers_without_reading(family: Family, engine: FakeEngine, path: str) -> None:
    """Whatever the body is, and even while it has not come: the second part is never sent."""
    engine.capacity = 0
    state = fake_state(family, engine)
    call = Call(app_of(state), path, [b"{no json", b"..."])
    await asyncio.wait_for(call.task, 60)
    assert call.status == 429 and call.headers["retry-after"] == "3" and b"the server is busy" in call.body
    assert len(call._parts) == 2, "something was read"
    value = state.metrics.registry.get_sample_value("ladle_admission_rejections_total", {"reason": "queue_full"})
    assert value == 1


@pytest.mark.parametrize("limits", [Limits(concurrent=1), Limits(tokens_per_minute=10)])
@pytest.mark.parametrize("path", GENERATING)
async def test_a_caller_over_its_limit_is_not_read(
    family: Family, engine: FakeEngine, path: str, limits: Limits
) -> None:
    """Others have the processor meanwhile."""
    state = fake_state(family, engine)
    caller = Caller("alice", frozenset({GENERATE}), limits)
    state.keys = OneKey(caller)
    with caller.using(1, 50):
        call = Call(build_app(state), path, [b"{no json", b"..."], {"authorization": "Bearer alice"})
        await asyncio.wait_for(call.task, 60)
    code = b"too_many_at_once" if limits.concurrent else b"tokens_per_minute"
    assert call.status == 429 and int(call.headers["retry-after"]) >= 1
    # Messages has a type for it, and no codes.
    assert (b"rate_limit_error" if path == "/v1/messages" else code) in call.body
    assert len(call._parts) == 2, "something was read"
    value = state.metrics.registry.get_sample_value("ladle_admission_rejections_total", {"reason": code.decode()})
    assert value == 1


async def test_what_needs_no_place_is_answered(family: Family, engine: FakeEngine) -> None:
    engine.capacity = 0
    async with client_of(fake_state(family, engine)) as client:
        assert (await client.post("/v1/coefficients", json={"preference": {"positive": 1}})).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_who_may_mean_another_family_is_read(family: Family, engine: FakeEngine) -> None:
    engine.capacity = 0
    state = fake_state(family, engine)
    roomy = FakeEngine()
    state.hosting.families["other"] = Hosted(Serving.of(family, roomy, 300))
    async with client_of(state) as client:
        assert (await client.post("/v1/generate", content=b"{no json")).status_code in (400, 415)
        roomy.capacity = 0
        assert (await client.post("/v1/generate", content=b"{no json")).status_code == 429


def test_a_room_says_when_it_is_full() -> None:
    room = WaitingRoom(2, 100)
    room.require()
    first = room.enter(60)
    room.require()
    second = room.enter(40)
    with pytest.raises(QueueFull):
        room.require()
    second.leave()
    room.require()
    first.leave()
    whole = room.enter(500)  # nobody waited
    with pytest.raises(QueueFull):
        room.require()
    whole.leave()
    room.require()
