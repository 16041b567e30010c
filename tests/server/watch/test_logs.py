"""Log lines: whose they are, that programs can read them, and that they say nothing of what was asked."""

import io
import json
import logging
import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from asgi import Call, app_of, client_of, wait_until
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed

from ladle.merging.family.family import Family
from ladle.server.watch.logs import configure_logging

pytestmark = pytest.mark.anyio
SECRET = "rosebud"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged, at every level; loggers are as before when the test is over."""
    stream = io.StringIO()
    monkeypatch.setattr("ladle.server.watch.logs.sys", SimpleNamespace(stderr=stream))
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("ladle", "uvicorn")}
    handlers, level = root.handlers[:], root.level
    # configure_logging closes what it replaces, and pytest's handlers are not ours.
    root.handlers = []
    yield stream
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def parsed(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_line_a_request(family: Family, engine: FakeEngine, lines: io.StringIO) -> None:
    configure_logging("info", "json")
    state = fake_state(family, engine, access_log=True)
    body = {"prompt": "once", "max_tokens": 4, "n": 2, "seed": random.Random(fresh_seed()).randrange(1000)}
    async with client_of(state) as client:
        answer = await client.post("/v1/completions", json=body, headers={"x-request-id": "from-the-proxy.1"})
        streamed = await client.post("/v1/generate", json={"prompt": "once", "max_tokens": 3, "stream": True})
        strange = await client.get("/no%0Asuch?q=path", headers={"x-request-id": "two words"})
    first, second, third = parsed(lines)
    assert first["request_id"] == answer.headers["x-request-id"] == "from-the-proxy.1"
    assert (first["method"], first["path"], first["status"], first["logger"]) == (
        "POST", "/v1/completions", 200, "ladle.access",
    )  # fmt: skip
    usage = answer.json()["usage"]
    assert first["prompt_tokens"] == 2 * usage["prompt_tokens"] and first["sequences"] == 2
    assert first["completion_tokens"] == usage["completion_tokens"] == 8
    assert first["finish_reasons"] == ["length", "length"] and first["seconds"] >= first["first_token_seconds"] >= 0
    assert second["request_id"] == streamed.headers["x-request-id"] and second["finish_reasons"] == ["length"]
    assert third["path"] == "/no%0Asuch" and third["status"] == 404 and "q=path" not in lines.getvalue()
    assert third["request_id"] == strange.headers["x-request-id"] != "two words"
    assert {"time", "level", "message"} <= set(first) and first["time"].endswith("Z")


@pytest.mark.parametrize("layout", ["text", "json"])
async def test_lines_never_hold_what_was_asked(
    family: Family, engine: FakeEngine, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Neither when it works nor when anything fails, at any level."""
    configure_logging("debug", layout)  # type: ignore[arg-type]
    state = fake_state(family, FakeEngine(reply=f"not {SECRET}"), access_log=True)
    async with client_of(state, raise_app_exceptions=False) as client:

        async def say(**more: object) -> int:
            body = {"prompt": SECRET, "max_tokens": 30, **more}
            return (await client.post(f"/v1/generate?{SECRET}", json=body)).status_code

        assert await say() == await say(stream=True) == 200
        assert await say(temperature=SECRET) == await say(regex=f"[{SECRET}") == 400
        state.serving.engine.fail_after = 1  # type: ignore[union-attr]
        assert await say() == 500

        def broken(*_: object, **__: object) -> None:
            try:
                raise ValueError(SECRET)
            except ValueError as error:
                raise RuntimeError(f"while reading {SECRET}") from error

        monkeypatch.setattr("ladle.server.chat_jobs.plan_of", broken)
        response = await client.post("/v1/generate", json={"prompt": SECRET})
        assert response.status_code == 500
        # What the web server makes of an exception that reaches it.
        try:
            broken()
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application", extra={"request_id": "req-1"})
    said = lines.getvalue()
    assert SECRET not in said
    assert said.count("RuntimeError") and said.count("ValueError") and "in broken" in said, (
        "but where it failed is there"
    )
    assert response.headers["x-request-id"] in said


async def test_prompts_where_the_operator_asks_for_them(family: Family, engine: FakeEngine, lines: io.StringIO) -> None:
    configure_logging("info", "json", prompts=True)
    state = fake_state(family, engine, access_log=True, log_prompts=True)
    async with client_of(state) as client:
        answer = await client.post("/v1/completions", json={"prompt": "once upon", "max_tokens": 64, "n": 2})
    (line,) = parsed(lines)
    assert line["prompts"] == ["once upon"]
    assert line["answers"] == [choice["text"] for choice in answer.json()["choices"]]


async def test_a_client_that_leaves_is_logged(family: Family, engine: FakeEngine, lines: io.StringIO) -> None:
    configure_logging("info", "text")
    engine.hold_after = 2
    state = fake_state(family, engine, access_log=True)
    call = Call(app_of(state), "/v1/generate", json.dumps({"prompt": "once", "max_tokens": 9, "stream": True}).encode())
    await call.sent.wait()
    await wait_until(lambda: b"index" in call.body)
    call.leave()
    await call.task
    (line,) = lines.getvalue().splitlines()
    assert "POST /v1/generate 200 [req-" in line and "finish_reasons=[null]" in line


def test_what_is_no_request_keeps_its_messages(lines: io.StringIO) -> None:
    configure_logging("info", "json")
    try:
        raise OSError("the disk is full")
    except OSError:
        logging.getLogger("ladle.server.run").exception("cannot load")
    logging.getLogger("somebody.else").info("noise")
    (line,) = parsed(lines)
    assert "the disk is full" in line["error"] and line["level"] == "error" and "request_id" not in line
