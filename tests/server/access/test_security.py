"""Keys, body limits, content types, CORS."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import Call, client_of, wait_until
from fake_engine import FakeEngine, fake_state
from pydantic import ValidationError

from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import ADMIN, GENERATE
from ladle.server.access.hosts import without_port
from ladle.server.app import build_app
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio


@pytest.fixture
def locked(family: Family, engine: FakeEngine, tmp_path: Path) -> ServerState:
    file = tmp_path / "keys"
    file.write_text("# ours\nkey-one\n\n  key-two  \nschlüssel\n", encoding="utf-8")
    state = fake_state(family, engine)
    state.keys = ApiKeys.read(file)
    return state


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer key-on",
        "Bearer key-one2",
        "Basic key-one",
        "key-one",
        "Bearer # ours",
        "Bearer \xff",
    ],
)
async def test_a_call_without_a_known_key_is_401(locked: ServerState, engine: FakeEngine, header: str | None) -> None:
    async with client_of(locked) as client:
        headers = {"authorization": header.encode("latin-1")} if header is not None else {}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/nothing")):
            response = await client.request(method, path, headers=headers, content=b"{")
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
            assert "key-one" not in response.text
    assert not engine.requests


async def test_every_known_key_is_let_in(locked: ServerState) -> None:
    async with client_of(locked) as client:
        for key in ("key-one", "key-two", "schlüssel"):
            headers = {"authorization": f"bearer {key}".encode()}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_health_metrics_and_docs_need_no_key(locked: ServerState) -> None:
    async with client_of(locked) as client:
        for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200


def test_key_files_that_let_nobody_in(tmp_path: Path) -> None:
    for content in (b"", b"\n# only a comment\n  \n", b"\xff\xfe"):
        file = tmp_path / "keys"
        file.write_bytes(content)
        with pytest.raises(InputError, match="api_key_file"):
            ApiKeys.read(file)
    with pytest.raises(InputError, match="nothing-here"):
        ApiKeys.read(tmp_path / "nothing-here")


async def test_scopes(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine)
    state.keys = ApiKeys([ApiKey.of("g", "g"), ApiKey.of("a", "a", [ADMIN]), ApiKey.of("b", "b", [ADMIN, GENERATE])])
    async with client_of(state) as client:
        for path, status in (("/v1/models", {"g": 200, "a": 403, "b": 200}), ("/v1/admin/x", {"g": 403, "a": 404})):
            for key, expected in status.items():
                response = await client.get(path, headers={"authorization": f"Bearer {key}"})
                assert response.status_code == expected, (path, key)
                if expected == 403:
                    error = response.json()["error"]
                    assert error["code"] == "missing_scope" and error["type"] == "permission_error"
                    assert "scope" in error["message"]


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer anything"}])
async def test_without_keys_nobody_administers(family: Family, engine: FakeEngine, header: dict) -> None:
    """Not even what does not exist: the answer tells how it would be open, and nothing else."""
    async with client_of(fake_state(family, engine)) as client:
        for path in ("/v1/admin/status", "/v1/admin/nothing"):
            response = await client.get(path, headers=header)
            assert response.status_code == 403 and "--api-key-file" in response.json()["error"]["message"]
        assert (await client.get("/v1/models", headers=header)).status_code == 200


HOSTS: dict[str, dict[str, bool]] = {
    "127.0.0.1": {
        "localhost": True,
        "LOCALHOST:8000": True,
        "localhost.": True,
        "a.localhost": True,
        "127.0.0.1:8000": True,
        "[::1]:8000": True,
        "10.1.2.3": True,
        "[fe80::1]": True,
        "ladle": False,
        "ladle.example": False,
        "evil.example": False,
        "localhost.evil.example": False,
        "127.0.0.1.evil.example": False,
        "notlocalhost": False,
        "evil.example:8000": False,
        "[evil.example]": False,
        "": False,
    },
    "0.0.0.0": {
        "ladle": True,
        "ladle:8000": True,
        "ladle.models.svc": True,
        "ladle.models.svc.cluster.local:8000": True,
        "localhost": True,
        "192.168.0.7": True,
        "evil.example": False,
        "svc.example": False,
        "cluster.local.evil.example": False,
        "": False,
    },
    "ladle.example": {"Ladle.Example:1": True, "other.example": False, "ladle": False},
}


@pytest.mark.parametrize("bound", HOSTS)
async def test_names_by_default(family: Family, engine: FakeEngine, bound: str) -> None:
    """No name that somebody else could own; addresses are nobody's name."""
    state = fake_state(family, engine)
    app = build_app(state, names=ServerSettings(host=bound).host_names)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
        for host, served in HOSTS[bound].items():
            response = await client.get("/v1/models", headers={"host": host})
            assert response.status_code == (200 if served else 400), host
            if not served:
                error = response.json()["error"]
                assert error["code"] == "invalid_host" and "--trusted-host" in error["message"]
            for probe in ("/health", "/ready"):  # asked for by any name
                assert (await client.get(probe, headers={"host": host})).status_code == 200
        twice = await client.get("/v1/models", headers=[("host", "localhost"), ("host", "localhost")])
        assert twice.status_code == 400


def test_the_machine_s_own_names_where_it_listens_everywhere() -> None:
    for bound in ("0.0.0.0", "::"):
        assert socket.gethostname() in ServerSettings(host=bound).host_names


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("ladle.example", True),
        ("LADLE.example:8000", True),
        ("ladle.example.", True),
        ("a.b.example.org:1", True),
        ("example.org", False),
        ("evilexample.org", False),
        ("ladle.example.evil", False),
        ("127.0.0.1", True),
        ("[::1]:8000", True),
        ("localhost", True),
        ("", False),
        ("localhost:80@evil.example", False),
        ("localhost:evil.example", False),
        ("127.0.0.1:80:evil.example", False),
        ("[::1].evil.example", False),
        ("[::1", False),
        ("localhost,evil.example", False),
        ("ladle.example..", False),
    ],
)
def test_names_that_an_operator_trusts(host: str, served: bool) -> None:
    names = ServerSettings(trusted_hosts=["Ladle.example", "*.example.org", "[::1]"]).host_names
    assert (without_port(host) in names) is served


def test_any_name() -> None:
    names = ServerSettings(trusted_hosts=["*"]).host_names
    assert names.any and "evil.example" in names and str(names) == "any name"
    assert "*.a.example" in str(ServerSettings(trusted_hosts=["*.a.example"]).host_names)


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x:80", "**", "*.", "x/y", "-x"])
def test_names_that_no_host_has(host: str) -> None:
    with pytest.raises(ValidationError, match="trusted_hosts"):
        ServerSettings(trusted_hosts=[host])


async def test_a_body_that_does_not_come_is_408(family: Family, engine: FakeEngine) -> None:
    """Nothing, or the first half, and then silence."""
    for parts in ([], [b'{"prompt": ']):
        app = build_app(fake_state(family, engine, body_seconds=0.1))
        call = Call(app, "/v1/completions", parts, unfinished=True)
        await asyncio.wait_for(call.task, 60)
        assert call.status == 408 and call.headers["connection"] == "close"
        assert json.loads(call.body)["error"]["code"] == "body_timeout" and not engine.requests


async def test_an_answer_may_take_longer_than_its_body(family: Family, engine: FakeEngine) -> None:
    engine.hold_after = 1
    call = Call(build_app(fake_state(family, engine, body_seconds=0.05)), "/v1/generate", b'{"prompt": "hi"}')
    await wait_until(lambda: engine.running)
    await asyncio.sleep(0.1)
    assert not call.task.done()
    call.leave()
    await asyncio.wait_for(call.task, 60)


async def test_a_body_above_the_limit_is_413(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine, max_body_bytes=1000)) as client:
        response = await client.post("/v1/completions", json={"prompt": "x" * 1000})
        assert response.status_code == 413 and "1000 bytes" in response.json()["error"]["message"]
        fits = json.dumps({"prompt": "hi", "user": "x" * 900}).encode()
        headers = {"content-type": "application/json"}
        assert (await client.post("/v1/completions", content=fits, headers=headers)).status_code == 200


async def test_a_body_whose_length_nobody_announced_is_counted(family: Family, engine: FakeEngine) -> None:
    app = build_app(fake_state(family, engine, max_body_bytes=1000))
    unread = [b"x" * 400] * 100
    call = Call(app, "/v1/completions", unread)
    await asyncio.wait_for(call.task, 60)
    assert call.status == 413 and call.headers["connection"] == "close"
    assert 75 < len(unread) < 80, "what is beyond the limit is read off within bounds, so that the refusal is seen"
    assert json.loads(call.body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("bounded", [True, False])
async def test_a_text_far_too_long_is_not_encoded_to_its_end(family: Family, engine: FakeEngine, bounded: bool) -> None:
    """Megabytes would take seconds of a processor. What only looks long is encoded, and fits. Where it is known how
    much text a token covers at most, what cannot fit is not encoded at all."""
    encoded: list[int] = []

    class Counting:
        def __init__(self, backend: Any) -> None:
            self._backend = backend

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            encoded.append(sum(map(len, texts)))
            return self._backend.encode_batch_fast(texts, **options)

    backend = engine.tokenizer.backend_tokenizer
    state = fake_state(family, engine)
    assert state.serving is not None and state.serving.bound.longest
    if not bounded:
        state.serving.bound.longest = None
    engine.tokenizer._tokenizer = Counting(backend)
    long = "gentle rain " * 200_000
    async with client_of(state) as client:
        for path, field, body in (
            ("/v1/completions", "prompt", {"prompt": long}),
            ("/v1/generate", "messages", {"messages": [{"role": "user", "content": long}]}),
            ("/v1/chat/completions", "messages", {"messages": [{"role": "user", "content": long}]}),
        ):
            error = (await client.post(path, json=body)).json()["error"]
            assert error["param"] == field and "more than" in error["message"]
            assert error["code"] == "context_length_exceeded"
        assert len(encoded) == (0 if bounded else 3) and sum(encoded) < 10_000
        engine.max_context = 1000
        engine.tokenizer._tokenizer = backend
        short = "<|im_start|>" * 900  # one token each, of twelve characters
        assert (await client.post("/v1/completions", json={"prompt": short, "max_tokens": 1})).status_code == 200
        short *= 2
        refused = (await client.post("/v1/completions", json={"prompt": short})).json()["error"]
        said = "more than" if bounded else "1800 tokens"
        assert said in refused["message"], "beginnings that fit prove nothing"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_only_json_is_read(family: Family, engine: FakeEngine, kind: str | None) -> None:
    async with client_of(fake_state(family, engine)) as client:
        headers = {"content-type": kind} if kind else {}
        response = await client.post("/v1/completions", content=b'{"prompt": "hi"}', headers=headers)
    assert response.status_code == 415 and "application/json" in response.json()["error"]["message"]
    assert not engine.requests


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"])
async def test_json_by_other_names(family: Family, engine: FakeEngine, kind: str) -> None:
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/completions", content=b'{"prompt": "hi"}', headers={"content-type": kind})
    assert response.status_code == 200


async def test_browsers_of_other_origins_are_kept_out_unless_named(family: Family, engine: FakeEngine) -> None:
    origin = {"origin": "https://example.org"}
    asks = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with client_of(fake_state(family, engine)) as client:
        for response in (
            await client.get("/v1/models", headers=origin),
            await client.options("/v1/models", headers=asks),
        ):
            assert not [name for name in response.headers if name.startswith("access-control")]
    state = fake_state(family, engine, cors_origins=["https://example.org"])
    state.keys = ApiKeys.of("k")
    async with client_of(state) as client:
        preflight = await client.options("/v1/completions", headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://example.org"
        refused = await client.get("/v1/models", headers=origin)
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://example.org"
        other = await client.get("/v1/models", headers={"origin": "https://evil.example", "authorization": "Bearer k"})
        assert "access-control-allow-origin" not in other.headers


async def test_every_answer_has_a_request_id(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        ids = [
            (await client.get(path)).headers["x-request-id"]
            for path in ("/health", "/nothing", "/v1/models", "/v1/models")
        ]
    assert len(set(ids)) == 4


async def test_a_bug_tells_the_client_nothing(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr("ladle.server.routes.models.model_ids", broken)
    async with client_of(fake_state(family, engine), raise_app_exceptions=False) as client:
        response: httpx.Response = await client.get("/v1/models")
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
