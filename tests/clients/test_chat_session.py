"""What is typed while an answer is written."""

import httpx
import pytest
from mock_server import MockServer, error

from ladle.clients import Client
from ladle.clients.chat_session import ChatSession


@pytest.fixture
def session(monkeypatch):
    mock, real = MockServer(), httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: real(**options | {"transport": mock.transport}))
    with Client() as client:
        session = ChatSession(client, {"model": "demo"})
        session.server = mock
        yield session


def test_commands_turn_the_answer_that_is_written(session, capsys):
    """What is refused changes nothing; what comes too late holds for the next answer."""
    typed = iter([["/prefer positive=1"], ["what?", "/prefer"], ["/strength much", "/strength 3", "/method nonsense"]])
    session.meanwhile = lambda: next(typed, [])
    refusal = error(400, "steering.strength: 3 is not for bone_soup")
    # The answer, the family's objectives, the change; the refused change.
    session.server.script = [session.server.answer] * 3 + [refusal]
    session.run(["Rain?"])
    requests = session.server.requests
    turned = [request for request in requests[1:] if request.url.path != "/v1/families"]
    assert [request.url.path for request in turned] == ["/v1/generate/gen-1/steering"] * 2
    assert session.server.body(2) == {"steering": {"preference": {"positive": 1.0}}}
    assert session.options == {"model": "demo", "preference": {"positive": 1.0}}
    told = capsys.readouterr()
    assert "Rain is lovely." in told.out and "while an answer is written" in told.err
    assert "nonsense" in told.err and "not for bone_soup" in told.err
    session.server.script = [session.server.answer, error(404, "ended")]
    session.meanwhile = lambda lines=iter([["/strength 2"]]): next(lines, [])
    session.run(["Snow?"])
    assert session.options["strength"] == 2
