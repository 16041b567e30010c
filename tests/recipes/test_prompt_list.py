import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ladle.recipes.prompt_list import SPLITS, load_prompts


@pytest.mark.parametrize(("name", "least"), [("everyday", 150), ("varied", 300)])
def test_shipped_prompts_are_many_distinct_and_split_by_topic(name: str, least: int) -> None:
    prompts = load_prompts(name)
    assert len(prompts) >= least
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    topics = {split: {prompt.topic for prompt in prompts if prompt.split == split} for split in SPLITS}
    assert all(topics.values())
    assert not topics["train"] & topics["validation"]
    assert not topics["train"] & topics["test"]
    assert not topics["validation"] & topics["test"]
    assert [p for split in SPLITS for p in load_prompts(name, split)] == prompts


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: tuple[str, str, str]) -> str:
        path = tmp_path / "list.jsonl"
        keys = ("split", "topic", "prompt")
        path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows), encoding="utf-8")
        return str(path)

    return write


def test_a_topic_in_two_splits_is_refused(write: Callable[..., str]) -> None:
    path = write(("train", "rain", "a"), ("test", "rain", "b"))
    with pytest.raises(ValueError, match=r"list\.jsonl:2: topic 'rain' is in both train and test"):
        load_prompts(path)


def test_a_repeated_prompt_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="'a' occurs twice"):
        load_prompts(write(("train", "rain", "a"), ("train", "rain", "a")))


def test_unknown_splits_are_refused(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="'dev' is not allowed"):
        load_prompts(write(("dev", "rain", "a")))
    with pytest.raises(ValueError, match="'dev' is not allowed"):
        load_prompts("everyday", "dev")
