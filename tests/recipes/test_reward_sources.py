"""Rewards by the name that a recipe gives: functions of one's own, classifiers, the built-in ones."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from ladle.recipes.reward_sources import reward_of
from ladle.recipes.rewards import Concise, Reward, scores

FUNCTIONS = """
import math

def asks(prompt, response):
    return response.count("?")

def known(completions, answer, **kwargs):
    return [float(a in c[0]["content"]) for c, a in zip(completions, answer, strict=True)]

def only(completions):
    return [len(c[0]["content"]) for c in completions]

def endless(prompt, response):
    return float("inf")

def silent(prompt, response):
    return None

def word(prompt, response):
    return "good"

def fails(prompt, response):
    return 1 / 0

def short(completions, **kwargs):
    return [1.0]

def single(completions, **kwargs):
    return 1.0

odd = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_rewards_of_a_test.py").write_text(FUNCTIONS)
    (tmp_path / "broken_rewards_of_a_test.py").write_text("import a_package_nobody_has\n")
    (tmp_path / "raising_rewards_of_a_test.py").write_text("raise ValueError('not today')\n")
    return tmp_path


def made(spec: str | None, folder: Path, name: str = "mine", **options: object) -> Reward:
    return reward_of(name, spec, folder, lambda text: len(text.split()), **options)  # type: ignore[arg-type]


def test_functions_of_a_file_and_of_a_module(folder: Path) -> None:
    for module in ("own_rewards_of_a_test.py", "own_rewards_of_a_test"):
        reward = made(f"{module}:asks", folder)
        assert reward.name == "mine" and reward("p", "You? Me?") == 2.0
        assert scores(reward, ["p", "q"], ["?", "???"]) == [1.0, 3.0]
    assert str(folder.resolve()) not in sys.path


def test_a_function_as_trl_has_them_gets_conversations_and_columns(folder: Path) -> None:
    columns = {"p": {"answer": "four"}, "q": {"answer": "five"}}
    reward = made("own_rewards_of_a_test.py:known", folder, columns=columns)
    assert scores(reward, ["p", "q", "p"], ["it is four", "it is four", "no"]) == [1.0, 0.0, 0.0]
    assert reward("q", "five") == 1.0
    assert made("own_rewards_of_a_test.py:only", folder, columns=columns)("p", "four") == 4.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("endless", r"rewards\.mine: inf is not allowed; allowed: a finite number \(for the response 'r'\)"),
        ("silent", r"rewards\.mine: None is not allowed; allowed: a finite number"),
        ("word", r"rewards\.mine: 'good' is not allowed; allowed: a finite number"),
        ("fails", r"rewards\.mine: the function failed with ZeroDivisionError: division by zero; for the response 'r'"),
        ("short", r"rewards\.mine: the function gave 1 rewards for 2 answers; allowed: one for each"),
        ("single", r"rewards\.mine: the function gave float, not a list of numbers"),
    ],
)
def test_what_a_function_gives_is_checked(folder: Path, function: str, words: str) -> None:
    reward = made(f"own_rewards_of_a_test.py:{function}", folder)
    with pytest.raises(ValueError, match=words):
        scores(reward, ["p", "q"], ["r", "s"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("own_rewards_of_a_test.py:nobody", r"own_rewards_of_a_test.py has no function 'nobody'"),
        ("own_rewards_of_a_test:odd", r"own_rewards_of_a_test has no function 'odd'"),
        ("none.py:asks", r"rewards\.mine: there is no file .*none.py'; allowed: FILE.py:FUNCTION, MODULE:FUNCTION"),
        ("nobody_has.this:asks", r"rewards\.mine: there is no module 'nobody_has'; allowed: one that is beside"),
        (
            "broken_rewards_of_a_test:asks",
            r"cannot be run: ModuleNotFoundError: No module named 'a_package_nobody_has'",
        ),
        ("raising_rewards_of_a_test.py:asks", r"cannot be run: ValueError: not today"),
        ("a b:asks", r"rewards\.mine: 'a b:asks' is not allowed; allowed: FILE.py:FUNCTION"),
        ("angry", r"rewards\.mine: 'angry' is not allowed; allowed: FILE.py:FUNCTION"),
        (None, r"objectives: 'mine' is not allowed; allowed: positive, concise, simple, or one that \[rewards\] names"),
    ],
)
def test_what_is_no_reward_is_refused(folder: Path, spec: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(spec, folder)


def test_a_built_in_reward_under_another_name(folder: Path) -> None:
    brief = made("concise", folder, "brief", concise_target=3)
    assert brief.name == "brief" and brief("", "One two three four.") == -1.0
    assert isinstance(made(None, folder, "concise"), Concise)


def test_a_saved_classifier_is_a_reward(base_folder: Path, random: np.random.Generator, tmp_path: Path) -> None:
    torch.manual_seed(int(random.integers(1000)))
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    turns = [{"role": "user", "content": "rain"}, {"role": "assistant", "content": "it falls"}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.inference_mode():
        expected = model(ids).logits[0]
    for label in range(2):
        assert made(f"judge#{label}", tmp_path)("rain", "it falls") == pytest.approx(float(expected[label]), abs=1e-6)
    for spec, words in (("judge#2", "label 2 is not allowed; allowed: 0 to 1"), ("judge#x", "the number of a label")):
        with pytest.raises(ValueError, match=rf"rewards\.mine: .*{words}"):
            made(spec, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"rewards\.mine: .*allowed: a sequence classifier"):
        made("empty", tmp_path)
