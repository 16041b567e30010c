"""Results that are there whole or not at all: a step that is broken off leaves nothing that looks finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write the file or folder ``path``: beside it, in a place that is free and whose folder exists.

    When the block ends, what was written there takes the place of ``path`` by a rename. When it raises, ``path`` is as
    it was, and what is left beside it is removed by the next one. One process at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    _remove(aside)
    yield aside
    if aside.is_dir():
        _remove(path)  # a folder is never renamed onto one that holds anything; a file is, at one stroke
    aside.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
