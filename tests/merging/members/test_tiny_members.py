"""The tiny members that tests write: those of a form that PEFT has written are what PEFT writes."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_models import write_lora_member, write_tiny_base


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"rank_pattern": {"o_proj": 5}, "target_modules": ["o_proj"]}]
)
def test_another_seed_is_byte_for_byte_what_peft_writes(
    tmp_path: Path, seed: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_tiny_base(tmp_path / "base", seed=seed % 1000)
    monkeypatch.setattr(tiny_models, "_FORMS", {})
    write_lora_member(tmp_path / "first", base, seed, r=3, **options)
    assert len(tiny_models._FORMS) == 1
    monkeypatch.setattr(tiny_models, "get_peft_model", None)
    write_lora_member(tmp_path / "form", base, seed + 1, r=3, size=0.2, **options)
    monkeypatch.undo()
    monkeypatch.setattr(tiny_models, "_FORMS", {})
    write_lora_member(tmp_path / "peft", base, seed + 1, r=3, size=0.2, **options)
    made, wanted = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("form", "peft"))
    assert made == wanted and made[tiny_models.ADAPTER] != (tmp_path / "first" / tiny_models.ADAPTER).read_bytes()
