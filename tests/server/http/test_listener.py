"""At the limit of file descriptors: connections are refused, and taken again once there is room."""

import contextlib
import json
import logging
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from ladle.server.http.listener import BoundedListener
from ladle.server.run import listen


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A soft limit of two hundred more than the process uses."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill = [os.open(os.devnull, os.O_RDONLY)]
    while fill[-1] < highest:  # numbers that were left free
        fill.append(os.open(os.devnull, os.O_RDONLY))
    limit = fill[-1] + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for file in fill:
        os.close(file)


def accepted(listener: BoundedListener) -> list[socket.socket]:
    """All connections that wait and are taken."""
    found = []
    for _ in range(3):  # after some refusals in a row it wants to be asked again
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(listener.accept()[0])
    return found


@pytest.mark.parametrize("taken", [False, True])
def test_connections_are_refused_and_taken_again(
    few_descriptors: int, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``taken``: something else uses the last descriptors, so that not even refusals get one."""
    with contextlib.ExitStack() as stack, caplog.at_level(logging.ERROR):
        listener = stack.enter_context(listen("127.0.0.1", 0))
        assert isinstance(listener, BoundedListener)
        listener.setblocking(False)
        clients = []
        for _ in range(70):
            client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            clients.append(client)
        files: list[int] = []
        with contextlib.suppress(OSError):
            while taken:
                files.append(os.open(os.devnull, os.O_RDONLY))
        served = accepted(listener)
        for file in files:
            os.close(file)
        if taken:
            assert not served
        else:
            assert 40 < len(served) < 70 and max(one.fileno() for one in served) < few_descriptors - 40
        for client in clients[len(served) :]:
            said = b""
            with contextlib.suppress(ConnectionError):
                said = client.recv(1000)
            assert not said if taken else said.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in said
            if said:
                assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
        for one in (*served, *clients):
            one.close()
        again = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
        (one,) = accepted(listener)
        one.sendall(b"y")
        assert again.recv(1) == b"y"
        one.close()
    assert [record.message for record in caplog.records if str(few_descriptors) in record.message]
    assert len(caplog.records) == 1, "the log says it once"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_no_part_of_an_answer_waits_for_an_acknowledgement(host: str) -> None:
    with (
        listen(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as taken,
    ):
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
