"""Too much, too early, too late: 429 and 503 with when to come back; and one that fails takes its siblings along."""

import asyncio
from typing import Any

import pytest
from asgi import Call, app_of, client_of, events_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family
from ladle.server.engine.engine import EngineStats
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState

pytestmark = pytest.mark.anyio
PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/generate": {"prompt": "hi"},
}
WHOLE: dict[str, Any] = {"/v1/score": {"prompt": "hi", "texts": ["a"], "by": "likelihood"}, "/v1/coefficients": {}}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_429(family: Family, engine: FakeEngine, path: str, stream: bool) -> None:
    engine.capacity = 0
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(path, json={**PATHS[path], "stream": stream})
    assert response.status_code == 429, "a stream that never began must not be a 200"
    assert response.headers["retry-after"] == "3"  # 2.4 s, rounded up
    error = response.json()["error"]
    assert error["code"] == "queue_full" and error["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_when_one_choice_finds_no_room_none_runs_on(family: Family, engine: FakeEngine, stream: bool) -> None:
    engine.capacity, engine.hold_after = 2, 0
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2, "stream": stream})
    assert response.status_code == 429
    assert not engine.running and len(engine.cancelled) == 2


@pytest.mark.parametrize(
    "path",
    [*PATHS, *WHOLE, "/v1/models", "/v1/models/tiny", "/v1/families", "/v1/families/tiny"],
)
@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.DRAINING])
async def test_no_work_while_loading_or_draining(family: Family, path: str, phase: Phase) -> None:
    state = ServerState(ServerSettings(), phase=phase)
    async with client_of(state) as client:
        body = (PATHS | WHOLE).get(path)
        response = await (client.post(path, json=body) if body is not None else client.get(path))
    assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == str(phase) and str(phase) in response.json()["error"]["message"]


async def test_what_runs_while_draining_is_finished(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine)
    engine.hold_after = 1
    call = Call(app_of(state), "/v1/generate", b'{"prompt": "hi", "stream": true}')
    await call.sent.wait()
    assert state.active == 1
    state.phase = Phase.DRAINING
    async with client_of(state) as client:
        assert (await client.post("/v1/generate", json={"prompt": "hi"})).status_code == 503
    assert not call.task.done()
    call.leave()
    await call.task
    assert state.active == 0


@pytest.mark.parametrize(("ending", "status"), [("error", 500), ("abort", 503)])
@pytest.mark.parametrize("path", PATHS)
async def test_an_engine_that_fails(family: Family, path: str, ending: str, status: int) -> None:
    engine = FakeEngine()
    engine.fail_after, engine.fail_with = 2, ending
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(path, json=PATHS[path])
        assert response.status_code == status
        assert "secret" not in response.text and set(response.json()["error"]) == {"message", "type", "param", "code"}
        streamed = await client.post(path, json={**PATHS[path], "stream": True})
    assert streamed.status_code == 200
    *_, last = events_of(streamed.text)
    assert set(last) == {"error"} and last["error"]["type"] == "server_error", "no [DONE] after an error"
    assert not engine.running


async def test_a_choice_that_fails_takes_its_siblings_along(family: Family) -> None:
    class OneFails(FakeEngine):
        def stats(self) -> EngineStats:
            return super().stats()

        def tokens(self, request: GenerationRequest) -> list[int]:
            if request.prompt == (66,):
                raise ValueError("/secret/path")
            return super().tokens(request)

    engine = OneFails()
    engine.hold_after = 3
    body = {"prompt": [[65], [66], [67]], "max_tokens": 30}
    async with client_of(fake_state(family, engine), raise_app_exceptions=False) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    # The third may not have begun, since others come between any two.
    assert not engine.running and len(engine.cancelled) >= 2


async def test_an_engine_that_dies_while_it_is_waited_for(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.server.generation._CHECK_SECONDS", 0.05)
    engine = FakeEngine()
    engine.hold_after = 1
    call = Call(app_of(fake_state(family, engine)), "/v1/generate", b'{"prompt": "hi"}')
    await asyncio.sleep(0.1)
    assert not call.task.done()
    engine.alive = False
    await asyncio.wait_for(call.task, 60)
    assert call.status == 503 and b"engine_stopped" in call.body


async def test_an_engine_that_was_shut_down_between_check_and_submission(family: Family) -> None:
    class ShuttingDown(FakeEngine):
        async def stream(self, request: GenerationRequest):  # type: ignore[no-untyped-def]
            state.phase = Phase.DRAINING
            raise RuntimeError("the engine is shutting down")
            yield

    state = fake_state(family, ShuttingDown())
    async with client_of(state) as client:
        response = await client.post("/v1/generate", json={"prompt": "hi"})
    assert response.status_code == 503 and response.json()["error"]["code"] == "draining"


@pytest.mark.parametrize(
    ("limits", "body", "field"),
    [
        ({"max_queue": 3}, {"prompt": "hi", "n": 4}, "n"),
        ({"max_queue": 3}, {"prompt": ["hi"] * 4}, "prompt"),
        ({"max_queue_tokens": 100}, {"prompt": [list(range(10, 50))] * 3}, "prompt"),
    ],
)
async def test_what_the_queue_can_never_hold_is_not_told_to_come_back(
    family: Family, engine: FakeEngine, limits: dict, body: dict, field: str
) -> None:
    async with client_of(fake_state(family, engine, **limits)) as client:
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == field, response.text
    assert str(next(iter(limits.values()))) in response.json()["error"]["message"] and not engine.requests
