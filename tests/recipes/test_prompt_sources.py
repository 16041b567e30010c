"""Prompts of everything that the library datasets reads, as local files and folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from ladle.recipes.prompt_list import SPLITS, load_prompts
from ladle.recipes.prompt_sources import read_prompts, split_up
from ladle.recipes.trl_config import PromptSource, prompt_source

TEXTS = [f"What is {thing}?" for thing in ("rain", "snow", "sand", "salt", "silk", "steel", "soap", "sugar", "silver")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_shipped_lists_and_lists_with_splits_stay_what_they_are(tmp_path: Path) -> None:
    assert read_prompts("everyday", tmp_path) == load_prompts("everyday")
    row = {"split": "train", "topic": "rain", "prompt": "Why?"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts("own.jsonl", tmp_path)
    assert (prompt.split, prompt.topic, prompt.text) == ("train", "rain", "Why?")


def test_every_kind_of_file_and_folder_gives_the_same_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": text, "answer": str(i)} for i, text in enumerate(TEXTS)]
    data = Dataset.from_list(rows)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    data.to_parquet(str(tmp_path / "p.parquet"))
    data.to_csv(str(tmp_path / "p.csv"))
    data.save_to_disk(str(tmp_path / "saved"))
    DatasetDict({"train": data}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "folder").mkdir()
    data.to_parquet(str(tmp_path / "folder" / "train-00000.parquet"))
    expected = split_up(rows, PromptSource("p.jsonl"))
    assert {prompt.text for prompt in expected} == set(TEXTS)
    assert [sum(prompt.split == split for prompt in expected) for split in SPLITS] == [7, 1, 1]
    for name in ("p.jsonl", "p.txt", "p.parquet", "p.csv", "saved", "splits", "folder"):
        source = name if "." in name else PromptSource(name)
        found = read_prompts(source, tmp_path)
        assert found == expected, name
        if name != "p.txt":
            assert [str(prompt.columns["answer"]) for prompt in found] == [row["answer"] for row in rows], name


def test_messages_of_one_turn_are_prompts_and_others_are_not() -> None:
    source = PromptSource("x", column="messages", held_out=1)
    turns: list[list[dict[str, Any]]] = [[{"role": "user", "content": text}] for text in TEXTS]
    assert [p.text for p in split_up(({"messages": turn} for turn in turns), source)] == TEXTS
    for odd, words in (
        ([*turns[0], {"role": "assistant", "content": "a"}], "row 1 of 'x': 2 messages are not allowed"),
        ([], "0 messages are not allowed; allowed: a text, or one turn of the user"),
        ("  ", "'  ' is not allowed; allowed: a text that is not empty"),
        (None, "None is not allowed"), (7, "7 is not allowed"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            split_up([{"messages": odd}], source)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "two.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "other.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "torn.jsonl").write_text('{"question": \n')
    (tmp_path / "p.docx").write_text("a")
    for name, words in (
        ("empty.jsonl", "'empty.jsonl' has 0 distinct prompts; allowed: 3 or more"),
        ("two.jsonl", "'two.jsonl' has 2 distinct prompts; allowed: 3 or more"),
        ("other.jsonl", "pool.prompts.column: 'prompt' is not allowed; allowed: a column of 'other.jsonl': question"),
        ("torn.jsonl", "is no JSONL"),
        ("none.jsonl", "there is no file 'none.jsonl'"),
        ("p.docx", "'p.docx' cannot be read: files end in .jsonl"),
        ("nothing", "pool.prompts: 'nothing' is not allowed; allowed: everyday, varied, a file, a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            read_prompts(name, tmp_path)


def test_a_table_is_checked() -> None:
    assert prompt_source({"dataset": "a/b", "held_out": 3}, "w") == PromptSource("a/b", held_out=3)
    for given, words in (
        ({"dataset": "a", "colum": "b"}, "w: unknown key 'colum'; allowed: dataset, name, split, column"),
        ({}, "w: the key 'dataset' is missing"), (3, "w: 3 is not allowed; allowed: a text, or a table"),
        ({"dataset": "a", "held_out": 0}, "w.held_out: 0 is not allowed; allowed: 1 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            prompt_source(given, "w")
