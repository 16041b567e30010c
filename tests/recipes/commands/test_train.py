"""``ladle train`` from a recipe of one's own to a family that loads, and what it refuses in one line."""

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner, Result

from ladle.merging.family.family import load_family
from ladle.recipes.commands.train import command

RECIPE = """
extends = "quick"
name = "mine"
base = "base"
objectives = ["vowels", "short"]
algorithm = "dpo"

[rewards]
vowels = "own.py:vowels"
short = "own_functions_of_train:short"

[pool]
prompts = "questions.jsonl"
max_tokens = 12
cut_lengths = [2, 10]
short_lengths = [1, 2]

[dpo]
epochs = 1

[grpo]
epochs = 1

[value]
held_out = 2
epochs = 1

[evaluation]
samples = 2
grid = 2
bootstrap = 20

[trl]
save_strategy = "no"
"""


@pytest.fixture
def place(base_folder: Path, tmp_path: Path) -> Path:
    """A folder with a recipe, its rewards and its prompts, beside a tiny base."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    (tmp_path / "own.py").write_text(
        "def vowels(prompt, response):\n    return sum(c in 'aeiou' for c in response) / (len(response) + 1)\n"
    )
    (tmp_path / "own_functions_of_train.py").write_text(
        "def short(completions, most, **kwargs):\n"
        "    return [m - len(c[0]['content']) for c, m in zip(completions, most, strict=True)]\n"
    )
    rows = [{"prompt": f"{a} {b}", "most": b} for a in ("rain", "sea", "stars") for b in range(4)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(*arguments: object) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def changed(place: Path, old: str, new: str) -> Path:
    assert old in RECIPE
    file = place / "changed.toml"
    file.write_text(RECIPE.replace(old, new, 1))
    return file


def test_from_two_functions_to_a_family(place: Path) -> None:
    matrix = "[soup]\nmatrix = [[0.8, 0.2], [0.1, 0.9]]\n[value]"
    recipe = changed(place, "[value]", matrix)
    done = run(recipe, "--out", place / "family", "--work", place / "work", "--json")
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    assert [row["method"] for row in measured["settings"]] == ["base", *["bone_soup"] * 2, *["rewarded_soup"] * 2]
    family = load_family(str(place / "family"))
    assert family.objectives == ("vowels", "short")
    assert family.matrix is not None and family.matrix.tolist() == [[0.8, 0.2], [0.1, 0.9]]
    assert sorted(value.kind for value in family.values) == ["explicit", "explicit", "implicit", "implicit"]
    card = (place / "family" / "README.md").read_text()
    assert "`own.py:vowels`" in card and "trl " in card and str(place) not in card
    assert sorted(path.name for path in (place / "work").iterdir() if "checkpoints" in path.name) == []

    (place / "family" / "README.md").unlink()
    again = run(recipe, "--out", place / "family", "--work", place / "work", "--skip-evaluation", "--skip-values")
    assert again.exit_code == 0 and "steps" not in again.output, "all was there"
    assert "Nothing yet" in (place / "family" / "README.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"dpo"', '"ppo"', "algorithm: 'ppo' is not allowed; allowed: dpo, grpo, rloo"),
        ("own.py:vowels", "own.py:vowel", "has no function 'vowel'"),
        ("own.py:vowels", "own_nothing:vowels", "there is no module 'own_nothing'"),
        ("questions.jsonl", "answers.jsonl", "pool.prompts: there is no file 'answers.jsonl'"),
        ("[grpo]", "[gprp]", "unknown key 'gprp'"),
        ("held_out = 2", "held_out = 80", "value.held_out: 80 is not allowed; allowed: fewer than the 8 topics"),
        ('save_strategy = "no"', 'save = "no"', "trl: unknown key 'save'"),
        ('base = "base"', 'base = "basis"', "basis"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(place: Path, old: str, new: str, words: str) -> None:
    refused = run(changed(place, old, new), "--out", place / "family", "--work", place / "work")
    assert refused.exit_code == 1, refused.output
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith("error: ") and words in line
    assert not (place / "family").exists() and not (place / "work").exists(), "nothing was sampled"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('x')", "rewards.vowels: the function failed with KeyError: 'x'; for the response 'Yes.'"),
        ("return float('nan')", "rewards.vowels: nan is not allowed; allowed: a finite number"),
        ("return 1.0", "rewards.vowels: the reward is 1 for each of the"),
    ],
)
def test_rewards_that_cannot_be_learnt_from_are_refused(place: Path, body: str, words: str) -> None:
    (place / "own.py").write_text(f"def vowels(prompt, response):\n    {body}\n")
    refused = run(place / "mine.toml", "--out", place / "family", "--work", place / "work")
    assert refused.exit_code == 1 and words in refused.stderr, refused.output
    assert not (place / "family").exists()


def test_options_are_checked(place: Path) -> None:
    for options, words in (
        (["--split", "dev"], "--split: 'dev' is not allowed; allowed: test, validation"),
        (["--device", "tpu"], "--device: 'tpu' is not allowed; allowed: cpu"),
        (["--beta", "0.2"], "--beta: 0.2 is not allowed; allowed: 1/n < beta < 1"),
    ):
        refused = run(place / "mine.toml", "--out", place / "family", *options)
        assert refused.exit_code == 1 and words in refused.stderr, refused.output
    empty = run(place / "none.toml", "--out", place / "family")
    assert empty.exit_code == 1 and "none.toml" in empty.stderr


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ladle.clients.cli import main

    plain: Callable[..., object] = builtins.__import__

    def lacking(name: str, *arguments: object, **named: object) -> object:
        if name == "trl":
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
        return plain(name, *arguments, **named)

    monkeypatch.setattr(sys, "argv", ["ladle", "train", "quick", "--out", "x"])
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said == "error: `ladle train` needs trl, which is not installed: pip install 'ladle[train]'"


slow = pytest.mark.skipif(
    "LADLE_TRAIN" not in os.environ, reason="starts processes for minutes; `make conformance` sets LADLE_TRAIN"
)


def started(place: Path, *launcher: str) -> "subprocess.Popen[str]":
    ladle = str(Path(sys.executable).with_name("ladle"))
    command = [*launcher, ladle, "train", "mine.toml", "--out", "family", "--work", "work"]
    options = ["--skip-values", "--skip-evaluation"]
    return subprocess.Popen(
        [*command, *options], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@slow
def test_a_killed_run_goes_on(place: Path) -> None:
    """SIGKILL in the middle of the second member; the whole command again gives what an undisturbed run gives."""
    (place / "mine.toml").write_text(
        RECIPE.replace("epochs = 1", "epochs = 5", 1).replace("[trl]\nsave_strategy", "[trl]\n# ", 1)
    )
    whole = started(place)
    said, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    for folder in ("family", "work"):
        (place / folder).rename(place / f"whole-{folder}")
    killed = started(place)
    deadline = time.monotonic() + 600
    while not list((place / "work").glob("bone-short-*.checkpoints/checkpoint-*/trainer_state.json")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = list((place / "work").glob("*.checkpoints"))
    assert len(left) == 1 and not (place / "family").exists()
    again = started(place)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert "bone-vowels:" not in said, "the first member was finished"
    for path in (place / "whole-family").rglob("adapter_model.safetensors"):
        assert path.read_bytes() == (place / "family" / path.relative_to(place / "whole-family")).read_bytes(), path


@slow
def test_two_processes_share_the_training(place: Path) -> None:
    """They learn what one process learns, up to the order of sums; without the winners' likelihood, which is a mean
    over the tokens of each process. torchrun starts them: without GPUs `accelerate launch` starts one process, whatever
    number it is given."""
    recipe = RECIPE.replace("[dpo]", "[dpo]\nwinner_nll = 0.0", 1)
    (place / "mine.toml").write_text(recipe)
    alone = started(place)
    said, _ = alone.communicate(timeout=600)
    assert alone.returncode == 0, said
    for folder in ("family", "work"):
        (place / folder).rename(place / f"alone-{folder}")
    launcher = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--no_python"]
    both = started(place, *launcher)
    said, _ = both.communicate(timeout=600)
    assert both.returncode == 0, said
    assert said.count("is made") == 1
    for path in (place / "alone-family").rglob("adapter_model.safetensors"):
        other = load_file(place / "family" / path.relative_to(place / "alone-family"))
        learnt = {name: tensor.float() for name, tensor in load_file(path).items() if "lora_B" in name}
        apart = sum(float((other[name].float() - tensor).square().sum()) for name, tensor in learnt.items())
        assert apart < 1e-4 * sum(float(tensor.square().sum()) for tensor in learnt.values()), path.parent.name
    (place / "mine.toml").write_text(recipe.replace("[dpo]", "[dpo]\nprompts_per_step = 3", 1))
    uneven = started(place, *launcher)
    said, _ = uneven.communicate(timeout=600)
    assert uneven.returncode != 0 and "2 processes cannot share 3 pairs a step" in said
