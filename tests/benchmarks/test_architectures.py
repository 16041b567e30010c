"""The survey of architectures, on five that show its outcomes; the whole one is ``ladle bench architectures``."""

from pathlib import Path

import pytest
from seeds import fresh_seed

from ladle.benchmarks import architectures


def test_served_refused_and_not_built(tmp_path: Path) -> None:
    kinds = frozenset({"llama", "mixtral", "deepseek_v2", "falcon", "musicgen"})
    outcomes = {one.kind: one for one in architectures.survey(tmp_path, fresh_seed(), kinds)}
    assert {kind: one.outcome for kind, one in outcomes.items()} == {
        "llama": "served",
        "mixtral": "served",
        "deepseek_v2": "served",  # its keys and values differ in size, and its pairs are complex numbers
        "falcon": "refused",
        "musicgen": "not built",
    }
    for kind in ("llama", "mixtral", "deepseek_v2"):
        base, member = outcomes[kind].base, outcomes[kind].member
        assert base is not None and member is not None and max(base, member) <= architectures.TOLERANCE
    assert "cannot be replaced" in outcomes["falcon"].reason
    page = architectures.table(list(outcomes.values()), {"transformers": "1.2"})
    assert "3 are served, 1 are refused" in page and "| falcon | refused |" in page and "transformers 1.2" in page


def test_what_passes_check_and_is_not_served_equally_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "require_servable", lambda family: None)
    (outcome,) = architectures.survey(tmp_path, fresh_seed(), frozenset({"falcon"}))
    assert outcome.outcome == "wrong" and "FamilyError" in outcome.reason
