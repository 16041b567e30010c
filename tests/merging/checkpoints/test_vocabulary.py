"""Tokenizers of members beside the base's, which is the one that is used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from ladle.merging.checkpoints.vocabulary import (
    TOKENIZER,
    require_same_vocabulary,
    require_shared_vocabulary,
    tokens_of,
    without_embedding,
)
from ladle.merging.exceptions import FamilyError


def pair(
    tmp_path: Path, change: Callable[[Any], None], base: Callable[[Any], None] = lambda _: None
) -> tuple[Path, Path]:
    """Two folders whose tokenizers differ by ``change``."""
    for name, edit in (("base", base), ("member", change)):
        tokenizer = tiny_tokenizer()
        edit(tokenizer)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / "base", tmp_path / "member"


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> tuple[Path, Path]:
    base, member = pair(tmp_path, lambda _: None)
    document = json.loads((member / TOKENIZER).read_text())
    edit(document)
    (member / TOKENIZER).write_text(json.dumps(document))
    return base, member


def test_tokens_beyond_the_bases_are_a_note(tmp_path: Path) -> None:
    base, member = pair(tmp_path, lambda tokenizer: tokenizer.add_tokens(["[PAD]", "<tool>", "<a>", "<b>"]))
    (note,) = require_shared_vocabulary(base, member)
    assert "4 tokens more than the base's tokenizer ('[PAD]', '<tool>', '<a>', ...)" in note
    (note,) = require_shared_vocabulary(member, base)
    assert "4 tokens fewer" in note
    first = max(tokens_of(base / TOKENIZER)) + 1
    with pytest.raises(FamilyError, match=rf"id {first} is '\[PAD\]' there and no token in the base's"):
        require_same_vocabulary(base, member)


def test_an_id_with_two_meanings_is_refused_by_its_first(tmp_path: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        vocab = document["model"]["vocab"]
        first, second = sorted(vocab, key=lambda token: vocab[token])[40:42]
        vocab[first], vocab[second] = vocab[second], vocab[first]

    base, member = edited(tmp_path, swap)
    ours, theirs = tokens_of(base / TOKENIZER)[40], tokens_of(member / TOKENIZER)[40]
    for compare in (require_shared_vocabulary, require_same_vocabulary):
        with pytest.raises(FamilyError) as caught:
            compare(base, member)
        assert f"id 40 is {theirs!r} there and {ours!r} in the base's" in caught.value.reason
        assert caught.value.file == str(member / TOKENIZER)


def test_special_tokens_that_are_swapped_are_refused(tmp_path: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        text = json.dumps(document).replace("<|im_start|>", "<|x|>").replace("<|im_end|>", "<|im_start|>")
        document.update(json.loads(text.replace("<|x|>", "<|im_end|>")))

    base, member = edited(tmp_path, swap)
    with pytest.raises(FamilyError, match="id 1 is '<|im_end|>' there"):
        require_shared_vocabulary(base, member)


def test_reserved_tokens_may_be_renamed(tmp_path: Path) -> None:
    reserve = ["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    base, member = pair(
        tmp_path,
        lambda tokenizer: tokenizer.add_tokens(["<|finetune_pad|>", reserve[1]], special_tokens=True),
        lambda tokenizer: tokenizer.add_tokens(reserve, special_tokens=True),
    )
    (note,) = require_shared_vocabulary(base, member)
    assert "1 reserved tokens of the base's tokenizer are renamed ('<|reserved_special_token_0|>' to" in note


def test_other_merges_are_a_note_to_a_member_and_no_more(tmp_path: Path) -> None:
    base, member = edited(tmp_path, lambda document: document["model"]["merges"].reverse())
    (note,) = require_shared_vocabulary(base, member)
    assert "other merges" in note
    with pytest.raises(FamilyError, match="its merges differ"):
        require_same_vocabulary(base, member)


def test_folders_that_say_nothing_pass(tmp_path: Path) -> None:
    base, member = pair(tmp_path, lambda _: None)
    assert require_shared_vocabulary(base, member) == []
    (member / TOKENIZER).unlink()
    assert require_shared_vocabulary(base, member) == [] and require_shared_vocabulary(member, base) == []


def test_tokens_that_the_model_does_not_know_are_a_note(tmp_path: Path) -> None:
    base, _ = pair(tmp_path, lambda _: None)
    rows = max(tokens_of(base / TOKENIZER)) + 1
    assert without_embedding(base, rows) == [] == without_embedding(tmp_path, rows)
    (note,) = without_embedding(base, rows - 5)
    names = [repr(tokens_of(base / TOKENIZER)[number]) for number in (rows - 5, rows - 4)]
    assert f"5 tokens are beyond the {rows - 5} embeddings" in note and f"{names[0]} is {rows - 5}, {names[1]}" in note
    assert "..." in note
