"""A server whose engine has ended says so, and ends; a request that is itself to blame hears that it is."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state
from prepared_process import PreparedProcess

from ladle.merging.exceptions import CodedText
from ladle.merging.family.family import Family
from ladle.server.engine.requests.answer import NOT_FINITE

# A request with this seed finds the bookkeeping broken. The process ends no sooner than somebody has looked at it.
CODE = """
import pathlib, sys, threading, time, typer
from ladle.server import run
from ladle.server.commands.serve import command
from ladle.server.engine.schedule.scheduler import Scheduler
real = Scheduler.schedule
def schedule(self):
    if any(sequence.request.sampling.seed == 666 for sequence in self.waiting):
        raise AssertionError("inconsistent")
    return real(self)
Scheduler.schedule = schedule
looked = pathlib.Path(sys.argv.pop())
def watch():
    while not looked.exists():
        time.sleep(0.01)
    run._FAREWELL_S = 0.0
run._FAREWELL_S = float("inf")
threading.Thread(target=watch, daemon=True).start()
typer.run(command)
"""


def test_a_dead_engine_turns_health_to_503_and_ends_the_process(family_folder: Path, tmp_path: Path) -> None:
    looked = tmp_path / "looked"
    options = ["--device", "cpu", "--dtype", "float32", "--kv-memory", "4MiB", "--port", "0", "--json"]
    process = PreparedProcess(
        [sys.executable, "-c", CODE, str(family_folder), *options, str(looked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        said = ""
        while not said.rstrip().endswith("}"):
            said += (line := process.stdout.readline())
            assert line, "the server ended"
        url = json.loads(said)["url"]
        lines: list[str] = []
        body = {"prompt": "hi", "max_tokens": 500, "logit_bias": {"2": -100, "0": -100}, "stream": True}
        with httpx.stream("POST", f"{url}/v1/generate", json=body, timeout=60) as beside:
            rest = beside.iter_lines()
            next(rest)
            assert httpx.get(f"{url}/health").status_code == 200
            killed = httpx.post(f"{url}/v1/generate", json={"prompt": "hi", "seed": 666}, timeout=60)
            lines += [line for line in rest if line]
        assert killed.status_code == 500 and killed.json()["error"]["code"] == "engine_error"
        assert '"error"' in lines[-1], "a stream that cannot go on says why"
        for path in ("/health", "/ready"):
            response = httpx.get(f"{url}{path}")
            assert response.status_code == 503 and "the engine has stopped" in response.text
        refused = httpx.post(f"{url}/v1/generate", json={"prompt": "hi"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_stopped"
        assert process.poll() is None
        looked.touch()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert [line for line in errors.splitlines() if line.startswith("error: ")] == [
            "error: an engine has stopped; the log says why"
        ]
        assert "inconsistent" in errors, "the log says why"
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_scores_that_are_no_numbers_are_the_requests_fault(family: Family, stream: bool) -> None:
    """Coefficients that take a model too far are a bad request; an engine that fails is not."""
    engine = FakeEngine()
    engine.fail_after, engine.error = 0, CodedText(NOT_FINITE, "too far")
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post("/v1/generate", json={"prompt": "hi", "stream": stream})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"], error["type"]) == (
            "scores_not_finite",
            "steering",
            "invalid_request_error",
        )
        assert "too far" in error["message"]
        engine.fail_after = 2
        later = await client.post("/v1/generate", json={"prompt": "hi", "stream": True})
        assert later.status_code == 200
        assert events_of(later.text)[-1]["error"]["code"] == "scores_not_finite"
