"""What the front does when replicas die, seen with replicas that die when they are told to."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import httpx
import pytest
from asgi import Call, events_of, wait_until
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed

from ladle.benchmarks.faults.hostile_bodies import hostile
from ladle.merging.family.family import Family
from ladle.server.access.security import BodyLimit
from ladle.server.app import build_app
from ladle.server.scale_out.front import Front, ReplicaLost
from ladle.server.scale_out.merged_metrics import merged
from ladle.server.scale_out.replica import Replica
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
STREAM = {**START, "headers": [(b"content-type", b"text/event-stream")]}


def piece(text: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


class Doubles:
    """Replicas that say the ``scripts``, one a request; an exception in one is raised, an event waited for."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[Mapping[str, Any], bytes, list[bytes]]] = []
        self.closed = 0
        self.dead = 0

    async def answer(
        self, scope: Mapping[str, Any], body: bytes, affinity: list[bytes]
    ) -> AsyncGenerator[list[Any], None]:
        self.asked.append((scope, body, affinity))
        try:
            for step in self.scripts.pop(0):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield [step]
        finally:
            self.closed += 1

    async def about(self) -> dict[str, Any]:
        if self.dead:
            self.dead -= 1
            raise ReplicaLost("gone")
        return {"family": "tiny", "materialised": False}

    async def metrics(self) -> list[tuple[str, bytes]]:
        return [(name, b"# TYPE ladle_x counter\nladle_x_total 2.0\n") for name in ("a-7", "b-7")]


def front_of(replicas: Doubles) -> Front:
    front = Front(lambda: None)
    front.replicas = replicas
    return front


def client_of(front: Front) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=front), base_url="http://front", timeout=20)


async def test_an_answer_that_is_lost_is_asked_for_again() -> None:
    """However much of it was there: none of it was shown."""
    replicas = Doubles(
        [ReplicaLost("1")], [START, piece(b"ha"), ReplicaLost("2")], [START, piece(b"ha"), piece(b"lf", False)]
    )
    async with client_of(front_of(replicas)) as client:
        answer = await client.post("/v1/generate", json={"prompt": "x" * 70}, headers={"x-request-id": "abc"})
        said = await client.get("/metrics")
    assert answer.text == "half" and replicas.closed == 3
    assert len({id(body) for _, body, _ in replicas.asked}) == 1 and all(len(keys) == 1 for *_, keys in replicas.asked)
    assert all((b"x-request-id", b"abc") in scope["headers"] for scope, *_ in replicas.asked)
    assert "ladle_front_retries_total 2.0" in said.text


async def test_a_stream_that_was_not_begun_is_asked_for_again() -> None:
    replicas = Doubles([ReplicaLost("1")], [STREAM, piece(b"data: 1\n\n"), piece(b"data: [DONE]\n\n", False)])
    async with client_of(front_of(replicas)) as client:
        answer = await client.post("/v1/generate", json={})
    assert events_of(answer.text) == [1, "[DONE]"]


async def test_a_stream_that_was_begun_ends_with_an_error() -> None:
    replicas = Doubles([STREAM, piece(b"data: 1\n\n"), ReplicaLost("1")])
    async with client_of(front_of(replicas)) as client:
        answer = await client.post("/v1/generate", json={})
        said = await client.get("/metrics")
    one, error = events_of(answer.text)
    assert one == 1 and error["error"]["code"] == "replica_lost" and error["error"]["type"] == "server_error"
    assert "ladle_front_streams_cut_total 1.0" in said.text and len(replicas.asked) == 1


async def test_a_stream_is_passed_on_as_it_comes() -> None:
    more = asyncio.Event()
    replicas = Doubles([STREAM, piece(b"data: 1\n\n"), more, piece(b"data: [DONE]\n\n", False)])
    call = Call(front_of(replicas), "/v1/generate", b"{}")  # type: ignore[arg-type]
    await wait_until(lambda: call.body == b"data: 1\n\n")
    more.set()
    await wait_until(call.task.done)
    assert events_of(call.body.decode()) == [1, "[DONE]"]


async def test_replica_after_replica_is_lost() -> None:
    async with client_of(front_of(Doubles(*([ReplicaLost("x")] for _ in range(9))))) as client:
        answer = await client.post("/v1/generate", json={})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "replica_lost"
    assert answer.headers["retry-after"]


async def test_a_client_that_leaves_ends_its_request() -> None:
    replicas = Doubles([STREAM, piece(b"data: 1\n\n"), asyncio.Event()], [asyncio.Event()])
    front = front_of(replicas)
    for number in (1, 2):
        call = Call(front, "/v1/generate", b"{}")  # type: ignore[arg-type]
        await wait_until(lambda: front.active == 1)
        await wait_until(lambda number=number: len(replicas.asked) == number)  # type: ignore[misc]
        call.leave()
        await call.task
        assert replicas.closed == number and front.active == 0


async def test_ready_says_whether_anybody_is_there() -> None:
    replicas = Doubles()
    front = front_of(replicas)
    async with client_of(front) as client:
        replicas.dead = 2
        assert (await client.get("/ready")).json() == {"status": "ready", "family": "tiny"}
        replicas.dead = 99
        answer = await client.get("/ready")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_replica"
        front._unready = lambda: "draining"
        for path in ("/ready", "/v1/models"):
            answer = await client.get(path)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "draining"
        assert (await client.get("/health")).status_code == 200
        front._unready = lambda: None
        assert (await client.post("/v1/admin/drain", json={})).status_code == 404


async def test_bodies_are_limited_and_sent_whole() -> None:
    replicas = Doubles([START, piece(b"", False)])
    limited = BodyLimit(front_of(replicas), 10, 30.0)
    call = Call(limited, "/v1/generate", [b"[1,", b"2,", b"3]"])  # type: ignore[arg-type]
    await wait_until(call.task.done)
    assert call.status == 200 and replicas.asked[0][1] == b"[1,2,3]"
    call = Call(limited, "/v1/generate", [b"[1,2,3,", b"4,5,6]"])  # type: ignore[arg-type]
    await wait_until(call.task.done)
    assert call.status == 413 and json.loads(call.body)["error"]["code"] == "body_too_large"


def test_samples_say_whose_they_are() -> None:
    text = b"# HELP ladle_x words\n# TYPE ladle_x histogram\n" + b"".join(
        b'ladle_x_bucket{le="%s"} 1.0\n' % bound for bound in (b"1.0", b"+Inf")
    )
    found = merged(
        [("a-1", text + b"ladle_x_sum 2.0\nladle_x_count 1.0\n"), ("b-1", b"# TYPE ladle_y gauge\nladle_y 3.0\n")]
    ).decode()
    assert 'ladle_x_bucket{le="1.0",replica="a-1"} 1.0' in found and 'ladle_y{replica="b-1"} 3.0' in found
    assert found.count("# TYPE ladle_x histogram") == 1


class Served:
    """One replica, a whole server, without Ray between it and the front."""

    def __init__(self, state: ServerState) -> None:
        self.replica = Replica.__new__(Replica)
        self.replica._state, self.replica._app = state, build_app(state)

    def answer(self, scope: Mapping[str, Any], body: bytes, affinity: list[bytes]) -> AsyncGenerator[list[Any], None]:
        return self.replica.answer(scope, body, affinity)  # type: ignore[arg-type]

    async def about(self) -> dict[str, Any]:
        return await self.replica.about()

    async def metrics(self) -> list[tuple[str, bytes]]:
        return [await self.replica.metrics()]


def bodies(rng: random.Random) -> Iterator[bytes]:
    yield from (b"", b"null", b"[]", b"{", b"\xff\xfe", b"\x80", b"NaN", b'"\\ud800"', b"1" * 5000, b"{}" * 2)
    for depth in (150, 300, 5000, 500_000):
        yield b"[" * depth + b"]" * depth
        yield b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"
        yield b'{"steering": ' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
        yield b'{"messages": [' + b'{"a":' * depth + b"1" + b"}" * depth + b"]}"
    yield b'{"prompt": [%s, 1]}' % (b"9" * 5000)
    yield b'{"model": %s, "prompt": "x"}' % (b"9" * 5000)
    yield b'{"prompt": [true, "x", null, {}]}'
    yield b'{"messages": {"role": 1}, "prompt": "\\ud83d", "steering": []}'
    yield b'{"prompt": "\\ud83d", "steering": {"\\ud83d": 1e400}}'
    yield json.dumps({"prompt": [7] * 300_000}).encode()
    yield json.dumps({f"n{number}": 1 for number in range(50_000)}).encode()
    plain = {"prompt": "rain", "messages": [{"role": "user", "content": "rain"}], "steering": {"preference": {"a": 1}}}
    for path in ("/v1/chat/completions", "/v1/generate"):
        yield from (hostile(rng, path, plain).body for _ in range(40))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/generate", "/v1/coefficients"])
async def test_whatever_is_sent_the_front_answers_as_the_server_would(
    family: Family, engine: FakeEngine, path: str
) -> None:
    state = fake_state(family, engine)
    front = Front(lambda: None)
    front.replicas = Served(state)
    rng = random.Random(fresh_seed())
    kinds = ["application/json", "application/json", "application/json", "text/plain", "", "application/x+json"]
    async with (
        client_of(front) as client,
        httpx.AsyncClient(transport=httpx.ASGITransport(app=build_app(state)), base_url="http://front") as alone,
    ):
        for body in bodies(rng):
            headers = {"content-type": rng.choice(kinds), "x-request-id": "same"}
            if rng.random() < 0.1:
                headers["content-encoding"] = rng.choice(["gzip", "br"])
            said = await client.post(path, content=body, headers=headers)
            expected = await alone.post(path, content=body, headers=headers)
            assert said.status_code == expected.status_code < 500, (body[:100], said.text)
            if said.status_code >= 400:
                assert said.json() == expected.json()


async def test_a_client_that_leaves_while_it_sends_is_asked_of_nobody() -> None:
    replicas = Doubles([START, piece(b"", False)])
    front = front_of(replicas)
    messages = [{"type": "http.request", "body": b'{"pro', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": []}
    await asyncio.wait_for(front(scope, receive, send), 20)
    assert not replicas.asked and not sent
