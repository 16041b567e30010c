"""The command line against a mock server: what it prints, what it refuses, how it fails."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path

import httpx
import pytest
from mock_server import Chunks, MockServer, error, event
from typer.testing import CliRunner

from ladle.clients import completion, lazy_commands
from ladle.clients.chat_session import ChatSession, _typed
from ladle.clients.sdk_commands import app

COMMANDS = ("generate", "chat", "coefficients", "families")


@pytest.fixture
def server(monkeypatch):
    """The mock server that all clients talk to."""
    mock = MockServer()
    real = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: real(**options | {"transport": mock.transport}))
    return mock


def run(*arguments, **options):
    return CliRunner().invoke(app, list(arguments), **options)


def test_generate_prints_the_text_as_it_comes(server):
    result = run("generate", "Once", "-p", "positive=3,concise=1", "--seed", "7", "--stop", "END")
    assert (result.exit_code, result.stdout) == (0, " upon a time.\n")
    assert server.body() == {
        "model": "demo",
        "prompt": "Once",
        "max_tokens": 128,
        "seed": 7,
        "stop": ["END"],
        "stream": True,
        "steering": {"preference": {"positive": 3.0, "concise": 1.0}},
    }


def test_forms_of_an_answer(server, tmp_path):
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}}
    (tmp_path / "rain.json").write_text(json.dumps(schema))
    assert run("generate", "Once", "--json-schema", str(tmp_path / "rain.json")).exit_code == 0
    assert server.body()["structured_outputs"] == {"json": schema}
    assert run("generate", "Once", "--regex", "a+").exit_code == 0
    assert server.body()["structured_outputs"] == {"regex": "a+"}
    sent = len(server.requests)
    (tmp_path / "list.json").write_text("[]")
    for bad in ("missing.json", "list.json"):
        result = run("generate", "Once", "--json-schema", str(tmp_path / bad))
        assert result.exit_code == 1 and result.stderr.startswith("error: json-schema: ")
    assert len(server.requests) == sent


def test_further_options_of_a_method(server):
    terms = '[{"source": "base", "weight": 1}]'
    given = [
        "-s",
        "value=explicit",
        "-s",
        "candidates=10",
        "-s",
        f"terms={terms}",
        "--steering",
        "negative_prompt=Be dull.",
    ]
    result = run("generate", "Once", "--method", "mage", "--strength", "0.5", *given)
    assert result.exit_code == 0
    assert server.body()["steering"] == {
        "method": "mage",
        "strength": 0.5,
        "value": "explicit",
        "candidates": 10,
        "terms": [{"source": "base", "weight": 1}],
        "negative_prompt": "Be dull.",
    }
    sent = len(server.requests)
    for bad in (["-s", "value"], ["-s", "=1"], ["-s", "alpha=1", "-s", "alpha=2"]):
        result = run("generate", "Once", *bad)
        assert result.exit_code == 1 and result.stderr.startswith("error: steering: ")
        assert len(server.requests) == sent


def test_generate_reads_stdin_and_answers_with_chat(server):
    result = run("generate", "--chat", "--model", "demo", input="Tell me about rain.")
    assert result.stdout == "Rain is lovely.\n"
    assert server.body()["messages"] == [{"role": "user", "content": "Tell me about rain."}]


def test_trace_explains_itself(server):
    result = run("generate", "Once", "--trace", "--method", "bone_soup", "-p", "positive=1")
    assert server.body()["steering"]["trace"] is True
    assert result.stdout == " upon a time.\n"
    assert "bone_soup, preference positive=1, coefficients bone-positive=1.75" in result.stderr
    assert "mean shift 0.219 nats" in result.stderr


def test_the_best_of_several(server):
    result = run("generate", "Once", "--n", "8", "--rank", "explicit", "-p", "positive=1")
    body = server.body()
    assert body["n"] == 8 and body["steering"]["rank"] == {"by": "explicit"} and "stream" not in body
    assert result.stdout == " upon a time.\n" and "score 0.75" in result.stderr
    for flags in (["--rank", "implicit", "--keep", "2"], []):
        assert run("generate", "Once", "--n", "2", *flags).stdout == " upon a time.\n\n upon a time.\n"
    assert run("generate", "Once", "--keep", "2").stderr.startswith("error: keep: ")


def test_a_target_is_sent_as_one(server):
    run("generate", "Once", "--target", "positive=0.6,concise=.4")
    assert server.body()["steering"] == {"target": {"positive": 0.6, "concise": 0.4}}
    sent = len(server.requests)
    result = run("generate", "Once", "--target", "x")
    assert result.exit_code == 1 and result.stderr.startswith("error: target: ") and len(server.requests) == sent


def test_json_is_the_whole_answer(server):
    result = run("generate", "Once", "--json", "--trace")
    answer = json.loads(result.stdout)
    assert answer["choices"][0]["text"] == " upon a time."
    assert answer["choices"][0]["tokens"][0]["shift"] == 0.25
    assert "stream" not in server.body()
    assert json.loads(run("families", "--json").stdout)[0]["name"] == "demo"
    assert json.loads(run("families", "demo", "--json").stdout)["objectives"] == ["positive", "concise"]
    assert json.loads(run("coefficients", "positive=1", "--json").stdout)["l1"] == 2.5


def test_tables_show_what_matters(server):
    text = run("coefficients", "positive=1", "--method", "bone_soup").stdout
    assert "bone-positive" in text and "+1.750000" in text and "-0.750000" in text and "(base)" in text
    text = run("families").stdout
    assert "bone-positive" in text and "1,234" in text and "the family has no value models" in text


@pytest.mark.parametrize("value", ["x", "a=b", "=1", "a=1,a=2", ",", "a"])
def test_a_preference_that_is_none_is_refused_before_anything_is_sent(server, value):
    result = run("generate", "Once", "-p", value)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: preference: ")
    assert server.requests == []


def test_failures_are_one_line(server):
    server.script = [httpx.ConnectError("refused")] * 3
    result = run("generate", "Once", "--model", "demo")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: cannot reach http://localhost:8000: refused; start a server with")
    server.script = [error(400, "preference.nice: unknown [objective]", param="preference.nice")]
    result = run("coefficients", "nice=1", "--model", "demo")
    assert result.stderr.splitlines() == ["error: preference.nice: unknown [objective] (status 400, request req-7)"]


def test_a_stream_that_fails_midway_ends_with_its_error(server):
    events = event({"index": 0, "token": {"id": 1, "text": "a[b]"}}) + event({"error": {"message": "out of luck"}})
    server.script = [httpx.Response(200, stream=Chunks([events]))]
    result = run("generate", "Once", "--model", "demo")
    assert result.exit_code == 1
    assert result.stdout == "a[b]"
    assert "error: out of luck" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: ladle {command}" in " ".join(result.stdout.split())


class TestLazyCommands:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """Makes entry points of modules written on the spot."""

        def write(**modules):
            entries = {}
            for name, source in modules.items():
                (tmp_path / f"ladle_test_{name}.py").write_text(source)
                entries[name] = EntryPoint(name, f"ladle_test_{name}:command", lazy_commands.GROUP)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.setattr(lazy_commands, "_entries", lambda: entries)

        return write

    def test_help_is_read_without_running_anything(self, package):
        package(loud='raise RuntimeError\ndef command() -> None:\n    """Be loud.\n\n    Very."""\n')
        result = run("--help")
        assert result.exit_code == 0
        assert "loud          Be loud." in result.stdout

    def test_a_command_runs_with_its_arguments(self, package):
        source = (
            'def command(word: str, twice: bool = False) -> None:\n    """Shout."""\n    print(word * (1 + twice))\n'
        )
        package(shout=source)
        assert run("shout", "hey", "--twice").stdout == "heyhey\n"
        assert run("shout").exit_code == 2
        assert "Shout." in run("shout", "--help").stdout

    def test_a_typer_application_is_a_command_too(self, package):
        source = (
            '"""Many."""\nimport typer\ncommand = typer.Typer()\n'
            "@command.command()\ndef one() -> None:\n    print(1)\n"
            "@command.command()\ndef two() -> None:\n    print(2)\n"
        )
        package(many=source, told=source.replace("Typer()", "Typer(help='Told.')"))
        assert "Many." in run("--help").stdout and "Told." in run("--help").stdout
        assert run("many", "two").stdout == "2\n"

    @pytest.mark.parametrize(
        "source",
        [
            'import a_package_nobody_has\ndef command() -> None:\n    """Lift."""\n',
            'def command() -> None:\n    """Lift."""\n    import a_package_nobody_has.inside\n',
        ],
    )
    def test_a_missing_extra_is_named(self, package, source):
        package(heavy=source)
        result = run("heavy")
        assert result.exit_code == 1
        assert result.stderr.strip() == (
            "error: `ladle heavy` needs a_package_nobody_has, which is not installed: pip install 'ladle[server]'"
        )

    def test_a_bug_in_a_command_is_not_mistaken_for_a_missing_extra(self, package):
        package(broken='import ladle.nothing_of_the_kind\ndef command() -> None:\n    """Break."""\n')
        assert isinstance(run("broken").exception, ModuleNotFoundError)


class TestChat:
    @pytest.fixture
    def session(self, connect):
        server = MockServer()
        with connect(server) as client:
            session = ChatSession(client, {"model": "demo"})
            session.server = server
            yield session

    def test_a_conversation_grows_and_is_forgotten(self, session, capsys):
        session.run(["Rain?", "", "And snow?", "/reset", "Hail?", "/quit", "never said"])
        bodies = [session.server.body(index) for index in range(3)]
        assert [len(body["messages"]) for body in bodies] == [1, 3, 1]
        assert bodies[1]["messages"][1] == {"role": "assistant", "content": "Rain is lovely."}
        assert len(session.server.requests) == 3
        assert capsys.readouterr().out == "Rain is lovely.\n" * 3

    def test_commands_change_the_next_answer(self, session):
        session.run(
            [
                "/prefer positive=0.8 concise=0.2",
                "/method bone_soup",
                "/strength 1.5",
                "/trace",
                "/seed 7",
                "/tokens 9",
                "x",
            ]
        )
        body = session.server.body()
        assert (body["seed"], body["max_tokens"]) == (7, 9)
        assert body["steering"] == {
            "preference": {"positive": 0.8, "concise": 0.2},
            "method": "bone_soup",
            "strength": 1.5,
            "trace": True,
        }
        session.run(["/prefer", "/method", "/strength", "/trace off", "/seed", "/tokens", "x"])
        assert "steering" not in session.server.body() and "seed" not in session.server.body()

    @pytest.mark.parametrize("line", ["/nope", "/prefer x", "/seed x", "/strength x", "/trace maybe"])
    def test_a_wrong_command_is_told_and_changes_nothing(self, session, line, capsys):
        session.run([line])
        assert session.options == {"model": "demo"}
        assert capsys.readouterr().err.count("error: ") == 1

    def test_a_refused_request_leaves_the_conversation_as_it_was(self, session, capsys):
        session.server.script = [error(400, "too long")]
        session.run(["x", "y"])
        assert "error: too long" in capsys.readouterr().err
        assert len(session.server.body()["messages"]) == 1

    def test_an_interrupted_answer_is_kept_as_far_as_it_got(self, session):
        class Interrupted(Chunks):
            def __iter__(self):
                yield event({"index": 0, "token": {"id": 1, "text": "Rain"}})
                raise KeyboardInterrupt

        chunks = Interrupted([])
        session.server.script = [httpx.Response(200, stream=chunks)]
        session.run(["x"])
        assert chunks.closed
        assert session.history[-1] == {"role": "assistant", "content": "Rain"}

    def test_help_names_every_command(self, session, capsys):
        session.run(["/help"])
        text = capsys.readouterr().out
        assert all(f"/{name}" in text for name in session._commands)

    def test_history_outlives_the_session(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        lines = iter(["hello"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
        assert list(_typed()) == ["hello"]
        assert (tmp_path / "ladle" / "chat_history").exists()


def test_help_is_quick_and_imports_nothing_heavy():
    source = (
        "import sys; sys.argv = ['ladle', '--help']\n"
        "from ladle.clients.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout


def test_without_typer_the_way_out_is_named():
    source = "import sys; sys.modules['typer'] = None\nfrom ladle.clients.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: the command line needs typer and rich: pip install 'ladle[cli]'")
    assert "'.[cli]'" in result.stderr, "what helps in a checkout too"


def bash_offers(words, **environment):
    """What is offered for the last of ``words``, as bash has taken them apart."""
    asked = {"_LADLE_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    command = [Path(sys.executable).parent / "ladle"]
    said = subprocess.run(command, env={**os.environ, **asked, **environment}, capture_output=True, text=True)
    assert said.stdout or not said.stderr, said.stderr
    return said.stdout.split()


class TestCompletion:
    def test_names_come_from_the_server(self, server):
        assert completion.methods("") == ["bone_soup"], "mage is not available there"
        assert completion.methods("x") == []
        assert completion.objectives("") == ["concise=", "positive="]
        assert completion.objectives("positive=0.8,c") == ["positive=0.8,concise="]
        assert completion.objectives("positive=0.8,p") == []
        assert completion.models("de") == ["demo"]

    def test_no_server_no_names(self, monkeypatch):
        monkeypatch.setenv("LADLE_URL", "http://127.0.0.1:9")
        assert completion.methods("") == completion.objectives("") == completion.models("") == []

    @pytest.mark.parametrize(
        ("words", "offered"),
        [("ladle cha", "chat"), ("ladle serve --expert", "--expert-schedule"), ("ladle bench rou", "routing")],
    )
    def test_a_shell_asks(self, words, offered):
        assert bash_offers(words.split()) == [offered]

    @pytest.mark.parametrize(
        ("word", "offered"),
        [
            ("-p pos", ["positive=", "positive=1"]),
            ("-p positive=0.8,", ["0.8,concise=", "0.8,concise=1"]),
            ("-p positive=0.8,con", ["0.8,concise=", "0.8,concise=1"]),
            ("-p positive=0.8,concise=0.2,", []),
            ("-p ", ["concise=", "positive="]),
            ("--preference=pos", ["positive=", "positive=1"]),
            ("--preference=positive=0.8,con", ["0.8,concise=", "0.8,concise=1"]),
        ],
    )
    def test_bash_completes_every_objective(self, word, offered, live_mock):
        """Bash breaks words at =, and replaces the last piece alone."""
        words = ["ladle", "generate", *(piece for piece in re.split("(=)| ", word) if piece is not None)]
        assert bash_offers(words, LADLE_URL=live_mock) == offered


def test_a_system_message(server):
    assert run("generate", "Rain?", "--chat", "--system", "Be brief.").exit_code == 0
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    assert server.body()["messages"] == turns and "system" not in server.body()
    assert run("chat", "--system", "Be brief.", input="Rain?\n/quit\n").exit_code == 0
    assert server.body()["messages"] == turns
    refused = run("generate", "Once", "--system", "Be brief.")
    assert refused.exit_code == 1 and refused.stderr.startswith("error: system: only with chat")


def test_a_401_says_how_to_give_a_key(server):
    server.script = [error(401, "no API key was given")]
    result = run("generate", "Once", "--model", "demo")
    assert result.exit_code == 1 and "--api-key" in result.stderr and "LADLE_API_KEY" in result.stderr


def test_the_version():
    assert run("--version").stdout == f"ladle {version('ladle')}\n"
