import json
from pathlib import Path

import pytest

from ladle.merging.members.adapter import CONFIG
from ladle.merging.members.named_base import other_bases


def adapter(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def base_at(folder: Path, name_or_path: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_name_or_path": name_or_path}))
    return folder


@pytest.mark.parametrize(
    ("named", "spec", "folder"),
    [
        ("org/Tiny-Chat", "org/Tiny-Chat", "base"),
        ("org/Tiny-Chat", "elsewhere/tiny-chat@v2", "base"),
        ("unsloth/tiny-chat-bnb-4bit", "org/Tiny-Chat", "base"),
        ("unsloth/tiny-chat-unsloth-bnb-4bit", "org/Tiny-Chat", "base"),
        ("org/Tiny-Chat", "models/tiny-chat/", "tiny-chat"),
        ("org/Tiny-Chat", "x", "models--org--Tiny-Chat/snapshots/c0ffee"),
        ("org/Tiny-Chat", "pypi:llm-tiny", "bases/tiny-chat.Q4_K_M-0123456789ab"),
        ("/home/somebody/models/Tiny-Chat", "org/Tiny-Chat", "base"),
        ("mlx-community/Tiny-Chat-4bit", "org/Tiny-Chat", "base"),
    ],
)
def test_names_of_one_base_agree(tmp_path: Path, named: str, spec: str, folder: str) -> None:
    base = base_at(tmp_path / folder)
    assert other_bases({"a": adapter(tmp_path / "a", base_model_name_or_path=named)}, base, spec) == []
    assert other_bases({"b": adapter(tmp_path / "b", model=named)}, base, spec) == []


def test_another_base_is_told_once_with_everybody_who_names_it(tmp_path: Path) -> None:
    base = base_at(tmp_path / "base", "org/Other")
    folders = {name: adapter(tmp_path / name, base_model_name_or_path="org/Tiny-Chat-7B") for name in ("a", "b")}
    folders["c"] = adapter(tmp_path / "c", base_model_name_or_path="org/Other")
    folders["d"] = adapter(tmp_path / "d", base_model_name_or_path="")
    folders["e"] = adapter(tmp_path / "e", base_model_name_or_path=["org/Tiny-Chat"])
    folders["f"] = adapter(tmp_path / "f", base_model_name_or_path=str(base))
    folders["g"] = adapter(tmp_path / "g", base_model_name_or_path="org/Tiny-Chat-1B")
    both, alone = other_bases(folders, base, "org/Tiny-Chat-3B")
    assert both.startswith("members a, b were trained on 'org/Tiny-Chat-7B'") and "org/Tiny-Chat-3B" in both
    assert alone.startswith("member g was trained on 'org/Tiny-Chat-1B'")
