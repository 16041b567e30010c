"""The key file: what its lines mean, what is refused, what reading it again changes; the command that makes a line."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import typer
from seeds import fresh_seed
from typer.testing import CliRunner

from ladle.merging.exceptions import InputError
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import ADMIN, GENERATE, Limits
from ladle.server.commands.keys import command

app = typer.Typer()
app.command()(command)


def hashed(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def keys_of(tmp_path: Path, *lines: str, defaults: Limits = Limits()) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ApiKeys.read(file, defaults)


def test_what_a_line_says(tmp_path: Path) -> None:
    keys = keys_of(
        tmp_path,
        "\ufeff# ours",
        f"alice {hashed('a')}",
        f"  bob {hashed('b')} scopes=admin,generate concurrent=3 tokens_per_minute=600  ",
        f"carol@example.org {hashed('schlüssel')} concurrent=1",
        "a-key-as-it-is",
        defaults=Limits(7, 70),
    )
    assert len(keys) == 4
    alice, bob, carol = (keys.find(key.encode().decode("latin-1")) for key in ("a", "b", "schlüssel"))
    assert alice and bob and carol
    assert (alice.name, alice.scopes, alice.limits) == ("alice", {GENERATE}, Limits(7, 70))
    assert (bob.name, bob.scopes, bob.limits) == ("bob", {GENERATE, ADMIN}, Limits(3, 600))
    assert (carol.name, carol.limits) == ("carol@example.org", Limits(1, 70))
    plain = keys.find("a-key-as-it-is")
    assert plain and plain.scopes == {GENERATE} and plain.name == "line 5"
    for wrong in ("", "A", "alice", hashed("a"), hashed("a").removeprefix("sha256:"), "a ", "\xff"):
        assert keys.find(wrong) is None


@pytest.mark.parametrize(
    "line",
    [
        "alice secret-key",
        f"{hashed('a')}",
        f"alice {hashed('a')[:-1]}",
        f"alice {hashed('a').upper()}",
        f"-alice {hashed('a')}",
        f"alice {hashed('a')} scopes=root",
        f"alice {hashed('a')} scopes=",
        f"alice {hashed('a')} concurrent=0",
        f"alice {hashed('a')} concurrent=-1",
        f"alice {hashed('a')} concurrent=many",
        f"alice {hashed('a')} tokens_per_minute=1.5",
        f"alice {hashed('a')} tokens_per_minute=1 tokens_per_minute=2",
        f"alice {hashed('a')} colour=red",
        f"alice {hashed('a')} admin",
        f"other {hashed('first')}",
        f"first {hashed('a')}",
    ],
)
def test_lines_that_mean_nothing_are_refused_without_showing_keys(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError) as caught:
        keys_of(tmp_path, f"first {hashed('first')}", line)
    assert "line 2" in str(caught.value) and "secret-key" not in str(caught.value)


def test_a_new_key_is_what_its_line_lets_in(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    for index in range(20):
        scopes = rng.choice([[GENERATE], [ADMIN], [ADMIN, GENERATE]])
        limits = Limits(rng.choice([None, rng.randint(1, 99)]), rng.choice([None, rng.randint(1, 10**9)]))
        key, entry = ApiKey.new(f"name{index}", scopes, limits)
        assert key not in entry.line() and len(key) > 40
        assert ApiKey.parse(entry.line(), 1) == entry
        caller = keys_of(tmp_path, entry.line()).find(key)
        assert caller and caller.scopes == set(scopes) and caller.limits == limits


def test_reading_again_keeps_what_was_used(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, f"alice {hashed('a')} tokens_per_minute=60", f"bob {hashed('b')}")
    alice = keys.find("a")
    assert alice is not None
    with alice.using(1, 1000):
        (tmp_path / "keys").write_text(f"eve {hashed('e')}\nalicia {hashed('a')} tokens_per_minute=120 scopes=admin\n")
        keys.reload()
        assert keys.find("b") is None and keys.find("e") is not None
        assert keys.find("a") is alice and alice.name == "alicia" and alice.scopes == {ADMIN} and alice.running == 1
        (tmp_path / "keys").write_text("broken line\n")
        with pytest.raises(InputError):
            keys.reload()
        assert keys.find("a") is alice and len(keys) == 2
        (tmp_path / "keys").unlink()
        with pytest.raises(InputError):
            keys.reload()
        assert keys.find("a") is alice


def run(*arguments: str, given: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments, input=given)
    return result.exit_code, result.stdout, result.stderr


def test_the_command_keeps_key_and_line_apart(tmp_path: Path) -> None:
    code, line, said = run("alice", "--scope", "admin", "--scope", "generate", "--concurrent", "4")
    assert code == 0 and line.count("\n") == 1
    key = said.split()[-1]
    caller = keys_of(tmp_path, line.strip()).find(key)
    assert caller and caller.name == "alice" and caller.scopes == {ADMIN, GENERATE} and caller.limits == Limits(4)
    code, line, said = run("bob", "--stdin", given="mine\n")
    assert code == 0 and line == f"bob {hashed('mine')} scopes=generate\n" and not said
    code, out, said = run("carol", "--json", "--tokens-per-minute", "9")
    document = json.loads(out)
    assert code == 0 and not said and keys_of(tmp_path, document["line"]).find(document["key"])


@pytest.mark.parametrize(
    ("arguments", "given", "field"),
    [
        (["a b"], None, "name"),
        (["a", "--scope", "root"], None, "scopes"),
        (["a", "--concurrent", "0"], None, "concurrent"),
        (["a", "--stdin"], "", "key"),
        (["a", "--stdin"], "two words", "key"),
    ],
)
def test_the_command_refuses_what_makes_no_line(arguments: list[str], given: str | None, field: str) -> None:
    code, line, said = run(*arguments, given=given)
    assert code == 2 and not line and said.startswith(f"error: {field}: ") and "words" not in said
