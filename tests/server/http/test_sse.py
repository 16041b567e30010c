"""Framing of events, keep-alives, and errors that come when the status is long sent."""

import asyncio
import json

import pytest
from asgi import Call, app_of, events_of
from fake_engine import FakeEngine, fake_state
from hypothesis import given
from hypothesis import strategies as st

from ladle.clients.event_decoder import EventDecoder
from ladle.merging.family.family import Family
from ladle.server.http.sse import event

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), min_size=1, max_size=4), st.integers(1, 9))
def test_every_event_is_one_line_and_survives_any_cut(documents: list[dict], size: int) -> None:
    stream = b"".join(event(document) for document in documents)
    for frame in stream[:-2].split(b"\n\n"):
        assert frame.startswith(b"data: ") and b"\n" not in frame and b"\r" not in frame
    decoder = EventDecoder()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [json.loads(data) for piece in pieces for data in decoder.feed(piece)] == documents


def test_an_event_is_one_line_to_whoever_counts_lines() -> None:
    """Python's own notion of a line, which httpx and requests share, ends one at every one of these."""
    text = "".join(chr(code) for code in range(0x3000) if len(f"a{chr(code)}b".splitlines()) > 1)
    assert len(text) >= 10
    line, *rest = event({"text": f"a{text}é\u2027\u0084"}).decode().splitlines()
    assert rest == [""] and json.loads(line.removeprefix("data: ")) == {"text": f"a{text}é\u2027\u0084"}
    assert "é\u2027\u0084" in line, "and nothing else is spelled out"


def test_numbers_that_json_lacks_are_never_sent() -> None:
    with pytest.raises(ValueError):
        event({"logprob": float("nan")})


@pytest.mark.anyio
async def test_a_silent_stream_sends_comments(family: Family, engine: FakeEngine) -> None:
    engine.hold_after = 2
    body = b'{"messages": [{"role": "user", "content": "hi"}], "stream": true}'
    call = Call(app_of(fake_state(family, engine, keep_alive_seconds=0.03)), "/v1/chat/completions", body)
    await asyncio.sleep(0.5)
    call.leave()
    await call.task
    assert call.body.count(b": keep-alive\n\n") >= 5
    assert len(events_of(call.body.decode())) >= 2, "what was said before is there"


@pytest.mark.anyio
async def test_a_stream_begins_even_while_its_request_waits(family: Family, engine: FakeEngine) -> None:
    """Proxies give up on a connection that stays silent."""
    engine.hold_after = 0
    call = Call(app_of(fake_state(family, engine)), "/v1/generate", b'{"prompt": "a", "stream": true}')
    await asyncio.wait_for(call.sent.wait(), 5)
    assert call.status == 200 and call.body == b": keep-alive\n\n"
    assert call.headers["content-type"].startswith("text/event-stream")
    assert call.headers["cache-control"] == "no-cache" and "content-length" not in call.headers
    call.leave()
    await call.task


@pytest.mark.anyio
async def test_an_unexpected_error_in_a_stream_is_told_without_details(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("/secret/path")

    monkeypatch.setattr("ladle.server.native.generate_reply.GenerateStream.closing", broken)
    call = Call(app_of(fake_state(family, engine)), "/v1/generate", b'{"prompt": "a", "stream": true}')
    await call.task
    *tokens, last = events_of(call.body.decode())
    assert tokens and last["error"]["code"] == "internal_error" and b"secret" not in call.body
    assert not engine.running
