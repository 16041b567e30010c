"""The examples of docs/structured-output.md run as they stand there, against a server of a random model."""

import contextlib
import io
import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tiny_engine import fresh_seed
from tiny_models import write_family
from tool_templates import HERMES_TEMPLATE
from typer.testing import CliRunner

from ladle.clients.app import app
from ladle.merging.family import load_family
from ladle.server.app import build_app
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.config import EngineConfig
from ladle.server.engine.engine import Engine
from ladle.server.run import listen, url_of
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState, Serving

PAGE = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text(encoding="utf-8")


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server whose family is called as in the examples, and whose template has tools."""
    folder = write_family(tmp_path, "llama", fresh_seed() % 1000, name="demo")
    (folder / "base" / "chat_template.jinja").write_text(HERMES_TEMPLATE)
    family = load_family(folder)
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", max_sequences=4, kv_memory=4 << 20))
    engine.start()
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(engine), engine.vocabulary))
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build_app(state), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield url_of(listener)
    server.should_exit = True
    thread.join(10)
    engine.shutdown()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_examples_of_the_page(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, shell = blocks("python"), blocks("")
    assert len(python) == 2 and len(shell) == 1
    printed = io.StringIO()
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        for block in python:
            exec(compile(block.replace("http://localhost:8000", url), "docs", "exec"), scope)
    days, sky, colour, call = printed.getvalue().split("\n", maxsplit=3)
    assert 1 <= int(days) <= 9 and sky in (" blue.", " grey.") and colour in ("blue", "grey")
    name, _, arguments = call.partition(" ")
    assert name == "weather" and json.loads(arguments)["town"] in ("Ur", "Bath")

    monkeypatch.setenv("LADLE_URL", url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rain.json").write_text(json.dumps(scope["RAIN"]))
    answers = []
    for line in shell[0].splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.stderr
        answers.append(result.stdout)
    assert set(json.loads(answers[0])) == {"wet", "days"} and answers[1].strip() in ("blue.", "grey.")
    for bad in ("missing.json", "empty.json"):
        (tmp_path / "empty.json").write_text("[]")
        refused = CliRunner().invoke(app, ["generate", "x", "--json-schema", bad])
        assert refused.exit_code == 1 and refused.stderr.startswith("error: json-schema: ")
