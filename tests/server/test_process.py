"""``ladle serve`` as a process: it listens first, says where, drains, and fails with one clear message."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import typer
from prepared_process import PreparedProcess
from typer.testing import CliRunner

from ladle.server.commands.serve import command
from ladle.server.run import Service, listen, url_of
from ladle.server.settings import ServerSettings

CODE = "import typer; from ladle.server.commands.serve import command; typer.run(command)"
FAST = ["--device", "cpu", "--dtype", "float32", "--kv-memory", "4MiB"]


def start(*arguments: str, kind: type[subprocess.Popen] = PreparedProcess) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return kind(
        [sys.executable, "-c", CODE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@contextmanager
def serving(*arguments: str, kind: type[subprocess.Popen] = PreparedProcess) -> Iterator[tuple[subprocess.Popen, str]]:
    process = start(*arguments, "--port", "0", "--json", kind=kind)
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            text += line
        yield process, json.loads(text)["url"]
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


LOOK = "import os, sys; print('torch' in sys.modules, os.environ['WORD'], sys.argv[1], input()); sys.exit(3)"


@pytest.mark.parametrize(("given", "imported"), [({}, "True"), ({"LADLE_LOG_LEVEL": "info"}, "False")])
def test_a_prepared_process_is_a_child_like_others(given: dict[str, str], imported: str) -> None:
    """Unless its environment says something that is read while modules are imported: then it is started as ever."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "WORD": "own", **given}
    process = PreparedProcess([sys.executable, "-c", LOOK, "word"], env=environment, **pipes)  # type: ignore[call-overload]
    assert process.communicate("line\n", timeout=60)[0].split() == [imported, "own", "word", "line"]
    assert process.returncode == 3
    process = PreparedProcess([sys.executable, "-c", LOOK, "word"], env=environment, **pipes)  # type: ignore[call-overload]
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_a_slip_is_told_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, typer\nfrom typer.testing import CliRunner\nfrom ladle.server.commands.serve import command\n"
        "app = typer.Typer(); app.command()(command)\nsaid = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert said.exit_code == 1 and not {'torch', 'fastapi'} & set(sys.modules)\nprint(said.stderr)"
    )
    arguments = [sys.executable, "-c", code, "/nonexistent"]
    plain = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert plain.startswith("error: /nonexistent: neither a folder with a family.toml nor")


def test_with_json_every_line_is_json(family_folder: Path) -> None:
    """From the first import on."""
    options = (*FAST, "--log-format", "json")
    with serving(str(family_folder), *options, kind=subprocess.Popen) as (process, url):
        assert httpx.get(f"{url}/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    lines = [json.loads(line)["message"] for line in said.splitlines()]
    assert lines[0].startswith("it is to be asked by") and any("is served at" in line for line in lines)


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(family_folder: Path) -> None:
    with serving(str(family_folder), *FAST) as (process, url):
        assert httpx.get(f"{url}/ready").json()["family"] == "tiny"
        body = {"prompt": "hi", "max_tokens": 400, "logit_bias": {"2": -100, "0": -100}, "stream": True}
        with httpx.stream("POST", f"{url}/v1/generate", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 60
            while (ready := httpx.get(f"{url}/ready")).status_code == 200:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert ready.status_code == 503 and "draining" in ready.text
            assert httpx.get(f"{url}/health").status_code == 200
            refused = httpx.post(f"{url}/v1/completions", json={"prompt": "hi"})
            assert refused.status_code == 503 and refused.headers["retry-after"]
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]" and len(events) == 400 + 1
        assert process.wait(60) == 0
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health")


@pytest.mark.parametrize("moment", ["reading backbone", "loading tiny"])
def test_a_signal_while_loading_ends_the_process(family_folder: Path, moment: str) -> None:
    process = start(str(family_folder), *FAST, "--port", "0")
    assert process.stderr is not None
    while moment not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors, errors


class InProcess:
    """The service on a thread, for what needs no process of its own."""

    def __init__(self, **settings: object) -> None:
        options = {"device": "cpu", "dtype": "float32", "kv_memory": 4 << 20, **settings}
        self.ready = threading.Event()
        self.service = Service(ServerSettings(**options), on_ready=lambda _: self.ready.set())  # type: ignore[arg-type]
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        self.thread = threading.Thread(target=self.service.run, args=(listener,), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)


@pytest.mark.parametrize("signals", [1, 2])
def test_the_end_of_a_drain_ends_what_still_runs(family_folder: Path, signals: int) -> None:
    """After the deadline, or at once at the second signal."""
    process = InProcess(family=str(family_folder), drain_seconds=0.2 if signals == 1 else 300)
    body = {"prompt": "hi", "max_tokens": 500, "logit_bias": {"2": -100, "0": -100}, "stream": True}
    with httpx.stream("POST", f"{process.url}/v1/generate", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        start_of_drain = time.monotonic()
        for _ in range(signals):
            process.service.stop()
        *_, last = (line for line in lines if line)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    process.thread.join(60)
    assert not process.thread.is_alive() and time.monotonic() - start_of_drain < 60
    assert process.service.state.active == 0


def test_an_idle_service_stops_at_once(family_folder: Path) -> None:
    process = InProcess(family=str(family_folder), drain_seconds=300)
    with httpx.Client(base_url=process.url) as client:  # a kept connection must not hold it up
        assert client.get("/ready").status_code == 200
        process.service.stop()
        process.thread.join(60)
    assert not process.thread.is_alive()


app = typer.Typer()
app.command()(command)


def failure(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return result.exit_code, errors[0]


def test_a_port_that_is_taken(family_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, message = failure(family_folder, "--port", port)
    assert code == 1
    problem = f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert message == f"error: {problem}; choose another port (0 picks a free one)"


def test_a_family_that_is_broken(tmp_path: Path) -> None:
    code, message = failure(tmp_path / "nowhere", "--port", 0)
    assert code == 1 and "nowhere" in message
    (tmp_path / "family.toml").write_text('name = "x"\nsurprise = 1\n[base]\nmodel = "base"\n')
    code, message = failure(tmp_path, "--port", 0)
    assert code == 1 and "family.toml" in message and "surprise" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv-memory", "lots"], "kv_memory"),
        (["--kv-memory", "1k"], "kv_memory"),
        (["--device", "tpu"], "device"),
        (["--port", "70000"], "error: port: Input should be less than or equal to 65535 (got 70000)"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--api-key-file", "/no/such/file"], "api_key_file"),
        (["--max-context", "100000"], "max_context"),
        (["--quick-start", "--reproducible"], "error: quick_start: not with reproducible: "),
        (["--key-concurrent", "3"], "error: key_concurrent: it needs api_key_file"),
    ],
)
def test_options_that_cannot_work(family_folder: Path, options: list[str], words: str) -> None:
    code, message = failure(family_folder, "--port", 0, *options)
    assert code in (1, 2) and words in message, message


@pytest.mark.parametrize(("host", "expected"), [("0.0.0.0", "http://127.0.0.1:"), ("127.0.0.1", "http://127.0.0.1:")])
def test_the_url_is_one_that_clients_can_use(host: str, expected: str) -> None:
    with listen(host, 0) as listener:
        url = url_of(listener)
    assert url.startswith(expected) and int(url.rpartition(":")[2]) > 0


def test_sighup_reads_the_keys_again(family_folder: Path, tmp_path: Path) -> None:
    """Running requests go on; a file that says nothing changes nothing."""
    file = tmp_path / "keys"
    file.write_text("old-key\n")

    def status(key: str) -> int:
        return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

    def until(key: str, expected: int) -> None:
        deadline = time.monotonic() + 60
        while status(key) != expected:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with serving(str(family_folder), *FAST, "--api-key-file", str(file)) as (process, url):
        assert status("old-key") == 200 and status("new-key") == 401
        body = {"prompt": "hi", "max_tokens": 300, "logit_bias": {"2": -100, "0": -100}, "stream": True}
        headers = {"authorization": "Bearer old-key"}
        with httpx.stream("POST", f"{url}/v1/generate", json=body, headers=headers, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            file.write_text("new-key\n")
            process.send_signal(signal.SIGHUP)
            until("new-key", 200)
            assert status("old-key") == 401
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]" and len(events) == 300 + 1
        file.write_text("")
        process.send_signal(signal.SIGHUP)
        file.write_text("newer-key\n")
        process.send_signal(signal.SIGHUP)
        until("newer-key", 200)
        assert process.poll() is None
