"""Where a recipe's prompts come from: a shipped list, a file with splits, or anything that the library ``datasets``
reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ladle.recipes.prompt_list import ListedPrompt, load_prompts, shipped_lists
from ladle.recipes.trl_config import PromptSource

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
_FEWEST = 3  # one for each split


def read_prompts(source: str | PromptSource, folder: Path) -> list[ListedPrompt]:
    """All prompts of a source, each in its split.

    Args:
        source: the name of a shipped list, a ``.jsonl`` with split, topic and prompt, or a file, a folder or an id that
            ``datasets`` reads.
        folder: what a relative path is relative to; one that is not there is looked for in the working directory.

    Raises:
        ValueError: there are no prompts, too few of them to keep some for validation and test, or one that is no text.
        OSError: a file cannot be read.
    """
    if isinstance(source, str):
        path = _found(source, folder)
        if not path.exists() and "/" not in source and not path.suffix:
            return _some(_shipped(source), source)
        if not path.exists() and path.suffix in _READERS:
            raise ValueError(
                f"pool.prompts: there is no file {source!r}, beside the recipe or in the working directory"
            )
        if path.suffix == ".jsonl" and _has_splits(path):
            return _some(load_prompts(str(path)), source)
        source = PromptSource(source)
    return split_up(_rows(source, folder), source)


def _shipped(name: str) -> list[ListedPrompt]:
    try:
        return load_prompts(name)
    except FileNotFoundError:
        allowed = f"{', '.join(sorted(shipped_lists()))}, a file, a folder, or ORG/NAME of a data set"
        raise ValueError(f"pool.prompts: {name!r} is not allowed; allowed: {allowed}") from None


def _found(source: str, folder: Path) -> Path:
    path = folder / Path(source).expanduser()
    return path if path.exists() else Path(source).expanduser()


def _has_splits(path: Path) -> bool:
    """Whether the first line of a ``.jsonl`` has the keys of our own lists."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(next((line for line in file if line.strip()), "{}"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"pool.prompts: {str(path)!r} is no JSONL: {error}") from None
    return isinstance(first, dict) and {"split", "topic", "prompt"} <= first.keys()


def _some(prompts: list[ListedPrompt], source: str) -> list[ListedPrompt]:
    if not prompts:
        raise ValueError(f"pool.prompts: {source!r} is empty; allowed: a list with prompts in it")
    return prompts


def _rows(source: PromptSource, folder: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = _found(source.dataset, folder)
    try:
        if path.is_file():
            if path.suffix not in _READERS:
                raise ValueError(f"files end in {', '.join(_READERS)}")
            if not path.stat().st_size:
                return []
            loaded = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
        elif path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(str(path))
            loaded = saved[source.split] if isinstance(saved, DatasetDict) else saved
        else:
            where = str(path) if path.is_dir() else source.dataset
            loaded = load_dataset(where, source.name, split=source.split)
    except Exception as error:  # whatever the library raises, its own errors are of many kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"pool.prompts: {source.dataset!r} cannot be read: {reason}") from error
    columns: list[str] = list(loaded.column_names)
    text = "text" if path.suffix == ".txt" and source.column == "prompt" else source.column
    if text not in columns:
        raise ValueError(
            f"pool.prompts.column: {text!r} is not allowed; allowed: a column of {source.dataset!r}: "
            f"{', '.join(columns)}"
        )
    return loaded if text == source.column else loaded.rename_column(text, source.column)


def split_up(rows: Iterable[Mapping[str, Any]], source: PromptSource) -> list[ListedPrompt]:
    """Prompts in the order of their rows, a few drawn for validation and as many for test; one that occurs twice counts
    once. Every prompt is a topic of its own.

    Raises:
        ValueError: fewer than three prompts, or a row whose prompt is no text.
    """
    distinct: dict[str, dict[str, object]] = {}
    for number, row in enumerate(rows, start=1):
        text = _text(row[source.column], number, source)
        distinct.setdefault(text, {key: value for key, value in row.items() if key != source.column})
    if len(distinct) < _FEWEST:
        raise ValueError(
            f"pool.prompts: {source.dataset!r} has {len(distinct)} distinct prompts; allowed: {_FEWEST} or more, as "
            "some are kept for validation and for test"
        )
    kept = max(1, min(source.held_out, len(distinct) // 5))
    order = np.random.default_rng(source.seed).permutation(len(distinct))
    splits = dict.fromkeys(order[:kept].tolist(), "validation") | dict.fromkeys(order[kept : 2 * kept].tolist(), "test")
    return [
        ListedPrompt(splits.get(i, "train"), text, text, columns) for i, (text, columns) in enumerate(distinct.items())
    ]


def _text(value: Any, number: int, source: PromptSource) -> str:
    """The prompt as a text, from a text or from messages that are one user turn."""
    where = f"pool.prompts: row {number} of {source.dataset!r}"
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict)]
        if len(value) != 1 or not turns or turns[0].get("role") != "user":
            raise ValueError(
                f"{where}: {len(value)} messages are not allowed; allowed: a text, or one turn of the user"
            )
        value = turns[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {repr(value)[:60]} is not allowed; allowed: a text that is not empty")
    return value
