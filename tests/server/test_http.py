"""What proxies, browsers, probes and other APIs' clients do with HTTP itself."""

import gzip
import json
import random
import re
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from fastapi import FastAPI
from seeds import fresh_seed

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys
from ladle.server.app import build_app
from ladle.server.http.late_heads import PromptHeads
from ladle.server.run import Service, listen
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
ORIGIN = "https://example.org"
USER: list[Any] = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


async def test_headers_of_browser_clients_are_let_through(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine, cors_origins=[ORIGIN])
    asked = [
        "authorization",
        "content-type",
        *(f"x-stainless-{name}" for name in ("os", "lang", "retry-count")),
        "api-key",
    ]
    random.Random(fresh_seed()).shuffle(asked)
    headers = {"access-control-request-method": "POST", "access-control-request-headers": ",".join(asked)}
    async with client_of(state) as client:
        found = await client.options(CHAT, headers={"origin": ORIGIN, **headers})
        assert found.status_code == 200, found.text
        allowed = {name.strip().lower() for name in found.headers["access-control-allow-headers"].split(",")}
        assert set(asked) <= allowed
        # Chromium asks so where the page is of the internet and the server is not.
        headers["access-control-request-private-network"] = "true"
        private = await client.options(CHAT, headers={"origin": ORIGIN, **headers})
        assert private.status_code == 200 and private.headers["access-control-allow-private-network"] == "true"
        strange = await client.options(CHAT, headers={"origin": "https://evil.example", **headers})
        assert strange.status_code == 400 and "access-control-allow-origin" not in strange.headers


async def test_failures_carry_what_browsers_need_to_read_them(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("ladle.server.routes.completions.make_job", fail)
    state = fake_state(family, engine, cors_origins=[ORIGIN])
    async with client_of(state, raise_app_exceptions=False) as client:
        broken = await client.post("/v1/completions", json={"prompt": "a"}, headers={"origin": ORIGIN})
    assert broken.status_code == 500 and broken.json()["error"]["code"] == "internal_error"
    assert broken.headers["access-control-allow-origin"] == ORIGIN and broken.headers["x-request-id"]
    assert "a bug" not in broken.text and "POST failed: ZeroDivisionError" in caplog.text
    async with client_of(state) as client:
        with pytest.raises(ZeroDivisionError):  # the web server's log gets it
            await client.post("/v1/completions", json={"prompt": "a"})


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/families", "/docs", "/", "/nothing"]
)
async def test_head_is_get_without_a_body(family: Family, engine: FakeEngine, path: str) -> None:
    state = fake_state(family, engine)
    async with client_of(state) as client:
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert (await client.head(CHAT)).status_code == 405
    assert state.metrics.render().decode().count('method="HEAD"') >= 1


async def test_paths_that_are_nearly_right_are_hinted_at(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        for wrong, right in (
            ("/chat/completions", CHAT),
            ("/v1/chat/completions/", CHAT),
            ("/v1/v1/chat/completions", CHAT),
            ("//v1//chat/completions", CHAT),
            ("/api/v1/chat/completions", CHAT),
            ("/openai/v1/v1/chat/completions/", CHAT),
            ("/V1/chat/completions", CHAT),
            ("/completions/", "/v1/completions"),
            ("/models", "/v1/models"),
            ("/v1/models/", "/v1/models"),
            ("/v1/tokenize", "/tokenize"),
            ("/v1/health", "/health"),
            ("/docs/", "/docs"),
        ):
            reply = await client.post(wrong, json={}) if "completions" in wrong else await client.get(wrong)
            assert reply.status_code == 404, wrong
            assert f"did you mean {right}?" in reply.json()["error"]["message"], (wrong, reply.text)
        assert "did you mean" not in (await client.get("/v1/embeddings/x")).text


@pytest.mark.parametrize("name", ["Authorization", "api-key", "X-API-Key"])
async def test_keys_come_in_the_headers_of_other_apis_too(family: Family, engine: FakeEngine, name: str) -> None:
    state = fake_state(family, engine)
    state.keys = ApiKeys.of("right")
    prefix = "Bearer " if name == "Authorization" else ""
    async with client_of(state) as client:
        for path in ("/v1/models", "/tokenize", "/detokenize"):
            call = client.get if path == "/v1/models" else client.post
            assert (await call(path, headers={name: f"{prefix}right"})).status_code != 401
            assert (await call(path, headers={name: f"{prefix}wrong"})).status_code == 401
            assert (await call(path)).status_code == 401
        both = {"Authorization": "Bearer dummy", "x-api-key": "right"}
        assert (await client.get("/v1/models", headers=both)).status_code == 200
        told = (await client.get("/v1/models", headers={name: f"{prefix}wrong"})).json()["error"]
        assert "not known" in told["message"] and "x-api-key" in told["message"]


def packed(body: bytes, parts: int = 1) -> bytes:
    size = -(-len(body) // parts)
    return b"".join(gzip.compress(body[start : start + size]) for start in range(0, len(body), size))


async def test_packed_bodies(family: Family, engine: FakeEngine) -> None:
    body = json.dumps({"messages": USER, "max_tokens": 3}).encode()
    state = fake_state(family, engine, max_body_bytes=2000)
    async with client_of(state) as client:

        async def post(data: bytes, encoding: str = "gzip") -> httpx.Response:
            return await client.post(
                CHAT, content=data, headers={"content-encoding": encoding, "content-type": "application/json"}
            )

        for data, encoding in (
            (packed(body), "gzip"),
            (packed(body, 3), "GZIP"),
            (body, "identity"),
            (packed(body), "x-gzip"),
        ):
            assert (await post(data, encoding)).status_code == 200
        for data, encoding, status, code in (
            (zlib.compress(body), "deflate", 415, "unsupported_media_type"),
            (body, "br", 415, "unsupported_media_type"),
            (packed(body), "gzip, gzip", 415, "unsupported_media_type"),
            (packed(body)[:-9], "gzip", 400, "invalid_gzip"),
            (body, "gzip", 400, "invalid_gzip"),
            (packed(body) + b"rest", "gzip", 400, "invalid_gzip"),
            (packed(b" " * 2001), "gzip", 413, "body_too_large"),
            (packed(b" " * 1_900_000), "gzip", 413, "body_too_large"),
            (b"", "gzip", 400, "invalid_value"),
        ):
            reply = await post(data, encoding)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text


async def test_a_bomb_is_not_unpacked(family: Family, engine: FakeEngine) -> None:
    bomb = packed(b"[" * (64 << 20))
    start = time.monotonic()
    async with client_of(fake_state(family, engine)) as client:
        reply = await client.post(
            CHAT, content=bomb, headers={"content-encoding": "gzip", "content-type": "application/json"}
        )
    assert reply.status_code == 413 and time.monotonic() - start < 20


def proxied(app: FastAPI, prefix: str, strips: bool) -> Any:
    """The application behind a proxy that publishes it under ``prefix`` alone."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        assert f"{path}/".startswith(f"{prefix}/"), f"{path} would not reach the server"
        if strips:
            scope = {**scope, "path": path.removeprefix(prefix), "raw_path": path.removeprefix(prefix).encode()}
        await app(scope, receive, send)

    return proxy


@pytest.mark.parametrize("strips", [True, False])
async def test_behind_the_prefix_of_a_proxy(family: Family, engine: FakeEngine, strips: bool) -> None:
    state = fake_state(family, engine, root_path="/some/ladle")
    state.keys = ApiKeys.of("k")
    transport = httpx.ASGITransport(app=proxied(build_app(state), "/some/ladle", strips))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy/some/ladle/") as client:
        page = await client.get("")
        assert page.status_code == 200 and "Ladle" in page.text
        for address in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
            assert not address.startswith("/"), address
            assert (await client.get(address)).status_code == 200, address
        if not strips:
            bare = await client.get("http://proxy/some/ladle", params={"a": "b"})
            assert bare.status_code == 307 and bare.headers["location"] == "/some/ladle/?a=b"
        docs = await client.get("docs")
        (link,) = re.findall(r'href="([^"#]+)"', docs.text)
        document = await client.get(str(httpx.URL("http://proxy/some/ladle/docs").join(link)))
        assert document.json()["servers"] == [{"url": "/some/ladle"}]
        assert (await client.get("v1/models")).status_code == 401, "keys are asked for under a prefix too"
        keyed = {"authorization": "Bearer k"}
        assert (await client.get("v1/models", headers=keyed)).status_code == 200
        assert (await client.get("v1/admin/status", headers=keyed)).status_code == 403
        reply = await client.post("v1/completions", json={"prompt": "a"}, headers=keyed)
        assert reply.status_code == 200


async def test_scripts_of_the_page_address_nothing_by_its_root() -> None:
    folder = Path(build_app.__code__.co_filename).parent / "playground"
    for file in folder.iterdir():
        text = file.read_text()
        assert '"/v1' not in text.replace("${origin}/v1", "") and '"/playground' not in text, file.name


@pytest.mark.parametrize("prefix", ["ladle", "/ladle/", "/", "/v1", "/docs/x", "/a b", "//a", "/%61"])
def test_prefixes_that_make_no_sense(prefix: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        ServerSettings(root_path=prefix)


async def test_probes_are_not_in_the_access_log(
    family: Family, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ladle.access")
    async with client_of(fake_state(family, engine, access_log=True)) as client:
        for path in ("/ready", "/health", "/v1/models", "/ready"):
            await client.get(path)
    assert [record.__dict__["facts"]["path"] for record in caplog.records if record.name == "ladle.access"] == [
        "/v1/models"
    ]


async def test_the_access_log_names_the_reason(
    family: Family, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ladle.access")
    state: ServerState = fake_state(family, engine, access_log=True, max_body_bytes=300, cors_origins=[ORIGIN])
    strange = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    secret = "rosebud"
    async with client_of(state) as client:
        expected = [
            ((await client.post(CHAT, json={"messages": USER, "temperature": secret})), "temperature", "invalid_value"),
            (await client.post(CHAT, json={"messages": [{"role": "user"}]}), "messages[0].content", "invalid_value"),
            (await client.post("/v1/completions", json={"prompt": "a", "model": secret}), "model", "model_not_found"),
            (
                await client.post(CHAT, content=secret, headers={"content-type": "text/plain"}),
                None,
                "unsupported_media_type",
            ),
            (await client.post(CHAT, json={"messages": secret * 99}), None, "body_too_large"),
            (await client.get("/nothing"), None, "not_found"),
            (await client.delete("/v1/models"), None, "method_not_allowed"),
            (await client.options(CHAT, headers=strange), None, "cors_refused"),
        ]
    lines: list[Any] = [record.__dict__["facts"] for record in caplog.records if record.name == "ladle.access"]
    for (reply, param, code), facts in zip(expected, lines, strict=True):
        assert (facts["status"], facts.get("param"), facts["error_code"]) == (reply.status_code, param, code)
        assert secret not in json.dumps(facts)


async def test_tokens_of_texts_and_messages(family: Family, engine: FakeEngine) -> None:
    tokenizer = engine.tokenizer
    async with client_of(fake_state(family, engine)) as client:

        async def post(path: str, **body: Any) -> Any:
            reply = await client.post(path, json=body)
            return reply.json() if reply.status_code == 200 else reply.json()["error"]["param"]

        text = "Tell me, é 雨 <|im_end|>"
        found = await post("/tokenize", prompt=text, return_token_strs=True)
        assert found["tokens"] == tokenizer(text).input_ids and found["count"] == len(found["tokens"])
        assert found["max_model_len"] == 128 and len(found["token_strs"]) == found["count"]
        assert (await post("/detokenize", tokens=found["tokens"]))["prompt"] == text
        assert (await post("/detokenize", tokens=[]))["prompt"] == ""
        assert (await post("/tokenize", prompt=""))["tokens"] == []
        for options in ({}, {"add_generation_prompt": False}):
            found = await post("/tokenize", messages=USER, **options)
            expected = tokenizer.apply_chat_template(
                USER, return_dict=False, **{"add_generation_prompt": True, **options}
            )
            assert found["tokens"] == expected and found["token_strs"] is None
        await client.post(CHAT, json={"messages": USER})
        assert list(engine.requests[0].prompt) == (await post("/tokenize", messages=USER))["tokens"]
        # Longer than the context is counted; far longer is refused before it is encoded.
        assert (await post("/tokenize", prompt="rain " * 200))["count"] > 128
        assert await post("/tokenize", prompt="rain " * 100_000) == "prompt"
        assert await post("/detokenize", tokens=[5, 320]) == "tokens[1]"
        assert await post("/detokenize", tokens="a") == "tokens"
        assert await post("/tokenize") == await post("/tokenize", prompt="a", messages=USER) == "prompt"
        assert await post("/tokenize", prompt="a", tools=[]) == "tools"
        assert await post("/tokenize", prompt="a", continue_final_message=True) == "continue_final_message"
        assert await post("/tokenize", messages=USER, add_special_tokens=True) == "add_special_tokens"
        assert await post("/tokenize", prompt="a", model="nobody") == "model"


@pytest.mark.parametrize(("options", "seconds"), [({}, 75), ({"idle_connection_seconds": 3}, 3)])
def test_idle_connections_are_kept(monkeypatch: pytest.MonkeyPatch, options: dict[str, int], seconds: int) -> None:
    told: dict[str, Any] = {}

    class Enough(Exception):
        """The web server is about to be made."""

    def config(*_: Any, **found: Any) -> None:
        told.update(found)
        raise Enough

    monkeypatch.setattr("ladle.server.run.uvicorn.Config", config)
    with listen("127.0.0.1", 0) as listener, pytest.raises(Enough):
        Service(ServerSettings(**options)).run(listener)  # type: ignore[arg-type]
    assert told["timeout_keep_alive"] == seconds and told["http"] is PromptHeads
