"""A result takes its place in one go, and one that is broken off changes nothing."""

from pathlib import Path

import pytest

from ladle.recipes.training.written_whole import written_whole


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_result_is_there_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deep" / "result"

    def write(place: Path, text: str) -> None:
        if kind == "folder":
            place.mkdir()
            (place / text).touch()
        else:
            place.write_text(text)

    def held() -> list[str]:
        return [file.name for file in path.iterdir()] if kind == "folder" else [path.read_text()]

    with written_whole(path) as aside:
        write(aside, "first")
        assert not path.exists()
    assert held() == ["first"]
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        write(aside, "half")
        raise RuntimeError
    assert held() == ["first"], "a result that was there stays as it was"
    with written_whole(path) as aside:
        assert not aside.exists(), "what was broken off is gone"
        write(aside, "second")
    assert held() == ["second"] and [file.name for file in path.parent.iterdir()] == ["result"]
