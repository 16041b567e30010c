"""Errors by status, and which of them are worth another attempt."""

import asyncio
import builtins
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from mock_server import MockServer, error

from ladle.clients import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConnectionError,
    LadleError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitError,
    ServerError,
    TimeoutError,
)
from ladle.clients.retry import RetryPolicy


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, NotFoundError),
        (405, APIError),
        (413, PayloadTooLargeError),
        (422, BadRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_statuses_become_errors_that_say_what_the_server_said(connect, status, kind, stream):
    refusal = error(status, "positive: nan is not allowed", code="invalid_value", param="steering.preference.positive")
    with connect(MockServer(refusal), max_retries=0) as client, pytest.raises(APIError) as caught:
        client.chat("a", model="demo", stream=stream)
    raised = caught.value
    assert type(raised) is kind
    assert raised.message == "positive: nan is not allowed"
    assert (raised.status, raised.code, raised.param) == (status, "invalid_value", "steering.preference.positive")
    assert (raised.type, raised.request_id) == ("some_error", "req-7")
    assert "positive: nan" in str(raised) and "req-7" in str(raised)


@pytest.mark.parametrize("body", [b"", b"<html>\n<h1>Bad gateway</h1>", b'{"error": "no"}', b'"x"', b"null", b"\xff"])
def test_errors_of_other_programs_are_still_readable(connect, body):
    with connect(MockServer(httpx.Response(502, content=body)), max_retries=0) as client:
        with pytest.raises(ServerError, match="HTTP 502 Bad Gateway") as caught:
            client.models()
        assert caught.value.code is None


def test_connection_errors_are_builtin_ones_too(connect):
    with connect(MockServer(httpx.ConnectError("refused")), max_retries=0) as client:
        with pytest.raises(builtins.ConnectionError, match="cannot reach http://ladle.test: refused") as caught:
            client.models()
        assert isinstance(caught.value, LadleError)
    with connect(MockServer(httpx.ReadTimeout("")), max_retries=0) as client:
        with pytest.raises(builtins.TimeoutError, match="did not answer in time") as caught:
            client.models()
        assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failure", [429, 502, 503, 504, httpx.ConnectError("x"), httpx.RemoteProtocolError("x")])
def test_what_may_pass_is_tried_again(connect, waits, failure, stream):
    server = MockServer(failure, failure)
    with connect(server) as client:
        reply = client.generate("Once", model="demo", seed=1, stream=stream)
        assert (reply.result() if stream else reply).text == " upon a time."
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


@pytest.mark.parametrize("failure", [400, 401, 404, 413, 500, httpx.ReadTimeout("x")])
def test_what_will_not_pass_is_not(connect, waits, failure):
    server = MockServer(failure)
    with connect(server) as client, pytest.raises((APIError, TimeoutError)):
        client.generate("Once", model="demo")
    assert len(server.requests) == 1
    assert waits == []


def test_the_last_failure_is_reported_when_attempts_run_out(connect, waits):
    server = MockServer(503, httpx.ConnectError("gone"), 429)
    with connect(server) as client, pytest.raises(RateLimitError):
        client.models()
    assert len(waits) == 2


def test_retry_after_in_seconds_is_honoured(connect, waits):
    server = MockServer(error(429, headers={"retry-after": "7"}))
    with connect(server) as client:
        client.models()
    assert 7.0 <= waits[0] <= 7.5


def test_retry_after_as_a_date_is_honoured(connect, waits):
    moment = datetime.now(UTC) + timedelta(seconds=20)
    server = MockServer(error(503, headers={"retry-after": format_datetime(moment, usegmt=True)}))
    with connect(server) as client:
        client.models()
    assert 17.0 <= waits[0] <= 20.5


@pytest.mark.parametrize("value", ["soon", "-3", ""])
def test_an_unreadable_retry_after_is_as_none(connect, waits, value):
    server = MockServer(error(503, headers={"retry-after": value}))
    with connect(server) as client:
        client.models()
    assert waits[0] <= 0.5


def test_nobody_waits_for_an_hour(connect, waits):
    server = MockServer(error(429, headers={"retry-after": "3600"}))
    with connect(server) as client, pytest.raises(RateLimitError) as caught:
        client.models()
    assert caught.value.retry_after == 3600.0
    assert waits == []


def test_backoff_grows_and_stays_bounded():
    policy = RetryPolicy(retries=20)
    for attempt in range(20):
        bound = min(8.0, 0.5 * 2**attempt)
        assert bound / 2 <= (policy.wait(attempt) or 0) <= bound
    assert policy.wait(20) is None
    assert policy.wait(0, retry_after=61.0) is None


def test_async_retries(aconnect, waits):
    async def run() -> None:
        server = MockServer(error(429, headers={"retry-after": "1"}), httpx.ConnectError("x"))
        async with aconnect(server) as client:
            stream = await client.generate("Once", model="demo", stream=True)
            assert (await stream.result()).text == " upon a time."
        async with aconnect(MockServer(400)) as client:
            with pytest.raises(BadRequestError):
                await client.models()

    asyncio.run(run())
    assert len(waits) == 2 and waits[0] >= 1.0
