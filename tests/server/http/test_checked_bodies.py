"""Longer bodies are checked beside the event loop, and nothing about the answer depends on it."""

import asyncio
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed

from ladle.merging.family.family import Family
from ladle.server.app import build_app
from ladle.server.fields.chat_messages import Message
from ladle.server.http.json_request import JsonRoute

pytestmark = pytest.mark.anyio
SPACES = b" " * (1 << 15)
USER = {"role": "user", "content": "hi"}
BODIES: list[tuple[str, Any]] = [
    ("/v1/completions", {"prompt": "hi", "max_tokens": 2, "seed": 3}),
    ("/v1/completions", {"prompt": [5, "6"]}),
    ("/v1/completions", {"prompt": "hi", "stray": 1, "n": "2", "logit_bias": {"x": 1}}),
    ("/v1/completions", [1]),
    ("/v1/completions", {}),
    ("/v1/chat/completions", {"messages": [USER, {"role": "nobody", "content": 3}]}),
    ("/v1/generate", {"prompt": "hi", "messages": [USER]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": []}], "max_tokens": 2}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
    ("/v1/responses", {"input": [{"type": "nothing"}]}),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "gone"}]}),
    ("/v1/score", {"prompt": "hi", "texts": [], "by": "likelihood"}),
    ("/v1/coefficients", {"preference": 7}),
    ("/tokenize", {"prompt": 7}),
    ("/detokenize", {"tokens": [5, -1]}),
    ("/detokenize", {"tokens": [5, True]}),
    ("/detokenize", {"tokens": [5, 1 << 30]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_spaces_change_nothing(family: Family, engine: FakeEngine, path: str, body: Any) -> None:
    written = json.dumps(body).encode()
    replies = []
    async with client_of(fake_state(family, engine)) as client:
        for content in (written, written + SPACES, SPACES + written):
            reply = await client.post(path, content=content, headers={"content-type": "application/json"})
            said = reply.json()
            replies.append(
                (reply.status_code, {key: said[key] for key in said if key not in ("id", "created", "request_id")})
            )
    assert replies[0] == replies[1] == replies[2]
    assert replies[0][0] in (200, 400)


async def test_messages_are_checked_and_turned_on_another_thread(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, seen = threading.get_ident(), {}

    def spied(owner: Any, name: str) -> None:
        work: Callable[..., Any] = getattr(owner, name)

        def spy(*arguments: Any) -> Any:
            seen.setdefault(name, set()).add(threading.get_ident())
            return work(*arguments)

        monkeypatch.setattr(owner, name, spy)

    spied(Message, "turn")
    many = [USER, {**USER, "role": "assistant"}] * 300 + [USER]
    async with client_of(fake_state(family, engine)) as client:
        for path, body in (
            ("/v1/chat/completions", {"messages": many}),
            ("/v1/messages/count_tokens", {"messages": many}),
            ("/v1/responses", {"input": many}),
            ("/tokenize", {"messages": many}),
        ):
            seen.clear()
            await client.post(path, json=body)
            assert here not in seen.get("turn", {here}), path
        seen.clear()
        await client.post("/tokenize", json={"messages": [USER]})
        assert seen["turn"] == {here}


async def test_what_breaks_a_check_is_no_fault_of_the_client(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = fake_state(family, engine)
    app = build_app(state)
    route = next(route for route in app.routes if getattr(route, "path", "") == "/detokenize")
    assert isinstance(route, JsonRoute)

    def breaks(error: Exception) -> None:
        def check(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(route, "check", check)

    async with client_of(state) as client:
        request = client.build_request("POST", "/detokenize", content=b'{"tokens": [5]}' + SPACES)
        request.headers["content-type"] = "application/json"
        breaks(RecursionError())
        assert "nested too deeply" in (await client.send(request)).json()["error"]["message"]
        breaks(TypeError("a slip"))
        with pytest.raises(TypeError, match="a slip"):  # for the server's log, behind a 500
            await client.send(request)


def test_routes_are_there_before_the_first_request(family: Family, engine: FakeEngine) -> None:
    """FastAPI would make those of an included router at the first request, for a tenth of a second."""
    app = build_app(fake_state(family, engine))
    assert all(hasattr(route, "path") and hasattr(route, "endpoint") for route in app.routes)
    assert not [route for route in app.routes if type(route).__name__ == "_IncludedRouter"]


async def test_others_come_between_many_choices(family: Family, engine: FakeEngine) -> None:
    """128 sequences do not begin in one go."""
    rng, turns = random.Random(fresh_seed()), [0]

    async def others() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    begun: list[int] = []
    stream = engine.stream

    def spy(request: Any) -> Any:
        begun.append(turns[0])
        return stream(request)

    engine.stream = spy  # type: ignore[method-assign]
    async with client_of(fake_state(family, engine)) as client:
        task = asyncio.create_task(others())
        count = rng.randrange(20, 128)
        reply = await client.post("/v1/completions", json={"prompt": "hi", "n": count, "max_tokens": 1})
        task.cancel()
    assert reply.status_code == 200 and len(begun) == count
    assert len(set(begun)) > count // 2
