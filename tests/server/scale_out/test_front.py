"""What the front does when replicas die, seen with replicas that die when they are told to."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import pytest
from asgi import Call, events_of, wait_until

from ladle.server.access.security import BodyLimit
from ladle.server.scale_out.front import Front, ReplicaLost
from ladle.server.scale_out.merged_metrics import merged

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
