"""Which settings have loops compiled before torch is there."""

from pathlib import Path
from typing import Any

import pytest

from ladle.server.engine.device import early_code


@pytest.mark.parametrize(
    ("changed", "driver", "begun"),
    [
        ({}, False, [False]),
        ({}, True, []),
        ({"device": "cpu"}, True, [False]),
        ({"device": "cuda"}, False, []),
        ({"quantize": "int8"}, True, [True]),
        ({"dtype": "bfloat16"}, False, [False]),
        ({"dtype": "float32"}, False, []),
        ({"compiled_layers": False}, False, []),
        ({"processes": 2}, False, []),
    ],
)
def test_loops_are_begun_where_they_are_likely_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any], driver: bool, begun: list[bool]
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(early_code, "compile_ahead", lambda quantized, gently: seen.append(quantized) or True)
    monkeypatch.setattr(early_code, "_DRIVER", tmp_path if driver else tmp_path / "nothing")
    settings: dict[str, Any] = {"device": "auto", "dtype": "auto", "quantize": "none", "compiled_layers": True}
    assert early_code.begin_code(**{**settings, "processes": 1, **changed}) == bool(begun)
    assert seen == begun
