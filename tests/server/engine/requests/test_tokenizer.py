"""Tokenizers that cannot be read are told in one line that says what to look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from ladle.merging.exceptions import FamilyError
from ladle.server.engine.requests.tokenizer import load_tokenizer


def _document(change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return edit


def _is_a_folder(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


CONFIG = "tokenizer_config.json"
FOREIGN = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["x.X", None]}}
BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: no such file, and nothing else"),
    (_is_a_folder, "tokenizer.json: no such file, and nothing else"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "KeyError 'added_tokens'"),
    (_document(lambda document: document.pop("model")), "Model missing"),
    (_document(lambda document: document["model"].update(type="Nothing")), "did not match any variant"),
    (_document(lambda document: document["model"]["vocab"].update(x=-1)), "expected u32"),
    (_document(lambda document: document.update(tokenizer_class=7), CONFIG), "has no attribute"),
    (_document(lambda document: document.update(eos_token=7), CONFIG), "eos_token has to be either str or"),
    (
        _document(lambda document: document.update(FOREIGN), CONFIG),
        "contains custom code",
    ),
]


@pytest.mark.parametrize(("edit", "words"), BROKEN)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, edit: Callable[[Path], Any], words: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size > 0
    edit(tmp_path)
    with pytest.raises(FamilyError) as caught:
        load_tokenizer(tmp_path)
    said = str(caught.value)
    assert words in said and said.startswith(str(tmp_path)) and "\n" not in said and not said.endswith(":")
