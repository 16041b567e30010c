"""Streams: whole however the network cuts them, and closed however they end."""

import asyncio
import gc
import itertools

import httpx
import pytest
from mock_server import PIECES, Chunks, MockServer, event, generation, stream_body

from ladle.clients import APIError, ConnectionError, ResponseError, TimeoutError, UsageError

BODY = {"model": "demo", "prompt": "Once"}


def serve(chunks: Chunks) -> MockServer:
    return MockServer(httpx.Response(200, headers={"x-request-id": "req-9"}, stream=chunks))


def snow_body(text: str) -> bytes:
    """A stream of one token a character, with every kind of line end and a comment between events."""
    tokens = [event({"index": 0, "token": {"id": 1, "text": character, "logprob": -1.0}}) for character in text]
    summary = generation(BODY) | {"choices": [{"index": 0, "finish_reason": "length"}]}
    endings = [b"\n", b"\r\n", b"\r"]
    parts = [part.replace(b"\n", endings[index % 3]) for index, part in enumerate(tokens)]
    return b": hello\n\n".join([b"", *parts, event(summary), b"data: [DONE]\r\n\r\n"])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10**6])
def test_any_chunking_gives_the_same_text(connect, rng, size):
    text = "".join(rng.choices('añ雪🌨️ \\"{}\n\r', k=40))
    body = snow_body(text)
    chunks = Chunks([body[start : start + size] for start in range(0, len(body), size)])
    with connect(serve(chunks)) as client, client.generate("Once", model="demo", stream=True) as stream:
        assert "".join(token.text for token in stream) == text
        result = stream.result()
    assert result.text == text
    assert result.choices[0].finish_reason == "length"
    assert chunks.closed


def test_random_cuts_give_the_same_text(connect, rng):
    text = "".join(rng.choices("añ雪🌨️ \n", k=60))
    body = snow_body(text)
    cuts = sorted({0, len(body), *(rng.randrange(len(body)) for _ in range(50))})
    chunks = Chunks([body[start:end] for start, end in itertools.pairwise(cuts)])
    with connect(serve(chunks)) as client:
        assert client.generate("Once", model="demo", stream=True).result().text == text


def test_a_streamed_answer_equals_the_whole_one(connect):
    server = MockServer()
    with connect(server) as client:
        whole = client.generate("Once", model="demo", trace=True, seed=5)
        stream = client.generate("Once", model="demo", trace=True, seed=5, stream=True)
        assert server.body()["stream"] is True
        assert stream.result() == whole
        assert stream.text == whole.text == "".join(text for text, _ in PIECES["Once"])
        untraced = client.generate("Once", model="demo", stream=True).result()
    assert untraced.tokens is None


def test_several_choices_are_kept_apart(connect):
    summary = generation(BODY) | {"choices": [{"index": i, "finish_reason": "stop"} for i in (0, 1)]}
    tokens = [
        event({"index": i, "token": {"id": i, "text": text}}) for i, text in [(0, "a"), (1, "x"), (1, "y"), (0, "b")]
    ]
    chunks = Chunks([*tokens, event(summary) + b"data: [DONE]\n\n"])
    with connect(serve(chunks)) as client:
        stream = client.generate("Once", model="demo", n=2, stream=True)
        assert [token.index for token in stream] == [0, 1, 1, 0]
        assert [choice.text for choice in stream.result().choices] == ["ab", "xy"]


def endless() -> Chunks:
    return Chunks([event({"index": 0, "token": {"id": 1, "text": "na"}})] * 1000)


def test_leaving_a_with_block_closes(connect):
    chunks = endless()
    with connect(serve(chunks)) as client:
        with client.generate("Once", model="demo", stream=True) as stream:
            next(iter(stream))
        assert chunks.closed
        assert chunks.served < 1000
        assert list(stream) == []
        stream.close()
        with pytest.raises(UsageError, match="not been read"):
            stream.result()


def test_a_bare_loop_that_breaks_closes(connect):
    chunks = endless()
    with connect(serve(chunks)) as client:
        for token in client.generate("Once", model="demo", stream=True):
            assert token.text == "na"
            break
        gc.collect()
        assert chunks.closed


def test_a_stream_that_was_never_read_closes(connect):
    chunks = endless()
    with connect(serve(chunks)) as client:
        stream = client.generate("Once", model="demo", stream=True)
        assert not chunks.closed
        del stream
        gc.collect()
        assert chunks.closed


def test_an_exception_in_the_loop_closes(connect):
    chunks = endless()
    with (
        connect(serve(chunks)) as client,
        pytest.raises(KeyError),
        client.generate("Once", model="demo", stream=True) as stream,
    ):
        for _ in stream:
            raise KeyError
    assert chunks.closed


def test_an_error_event_is_raised_after_the_tokens_before_it(connect):
    first = event({"index": 0, "token": {"id": 1, "text": "a"}})
    failure = event(
        {"error": {"message": "out of luck", "type": "server_error", "param": None, "code": "engine_failed"}}
    )
    chunks = Chunks([first + failure])
    server = serve(chunks)
    with connect(server) as client:
        stream = client.generate("Once", model="demo", stream=True)
        assert next(stream).text == "a"
        with pytest.raises(APIError, match="out of luck") as caught:
            next(stream)
    assert (caught.value.code, caught.value.type, caught.value.status) == ("engine_failed", "server_error", None)
    assert caught.value.request_id == stream.request_id == "req-9"
    assert chunks.closed
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (None, ConnectionError),
        (httpx.ReadError("reset"), ConnectionError),
        (httpx.RemoteProtocolError("peer closed"), ConnectionError),
        (httpx.ReadTimeout("silence"), TimeoutError),
    ],
)
def test_a_stream_that_breaks_is_an_error_and_is_never_repeated(connect, waits, failure, kind):
    chunks = Chunks([event({"index": 0, "token": {"id": 1, "text": "a"}})], failure)
    server = serve(chunks)
    with connect(server) as client:
        stream = client.generate("Once", model="demo", stream=True)
        next(stream)
        with pytest.raises(kind):
            next(stream)
    assert chunks.closed
    assert len(server.requests) == 1
    assert waits == []


@pytest.mark.parametrize("data", [b"data: {oops\n\n", b"data: 3\n\n", b'data: {"index": 0}\n\n'])
def test_an_event_that_is_not_ladles(connect, data):
    chunks = Chunks([data])
    with connect(serve(chunks)) as client, pytest.raises(ResponseError):
        next(client.generate("Once", model="demo", stream=True))
    assert chunks.closed


def test_async_streams_close_and_add_up(aconnect):
    async def run() -> None:
        body = stream_body(BODY)
        chunks = Chunks([body[start : start + 3] for start in range(0, len(body), 3)])
        async with aconnect(serve(chunks)) as client:
            stream = await client.generate("Once", model="demo", stream=True)
            assert [token.text async for token in stream] == [text for text, _ in PIECES["Once"]]
            assert (await stream.result()).text == stream.text == " upon a time."
        assert chunks.closed

        chunks = endless()
        async with aconnect(serve(chunks)) as client:
            async with await client.generate("Once", model="demo", stream=True) as stream:
                async for _ in stream:
                    break
            assert chunks.closed and chunks.served < 1000

        chunks = Chunks([event({"error": {"message": "out of luck"}})])
        async with aconnect(serve(chunks)) as client:
            with pytest.raises(APIError, match="out of luck"):
                async for _ in await client.generate("Once", model="demo", stream=True):
                    pass
        assert chunks.closed

        chunks = Chunks([b": nothing\n\n"])
        async with aconnect(serve(chunks)) as client:
            with pytest.raises(ConnectionError, match="before the answer was complete"):
                await (await client.generate("Once", model="demo", stream=True)).result()

    asyncio.run(run())


def test_cancelling_a_task_closes_its_stream(aconnect):
    class Silent(Chunks):
        async def __aiter__(self):
            yield event({"index": 0, "token": {"id": 1, "text": "a"}})
            await asyncio.sleep(3600)

    async def run() -> None:
        chunks = Silent([])
        started = asyncio.Event()

        async def read() -> None:
            async with (
                aconnect(serve(chunks)) as client,
                await client.generate("x", model="demo", stream=True) as stream,
            ):
                async for _ in stream:
                    started.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chunks.closed

    asyncio.run(run())
