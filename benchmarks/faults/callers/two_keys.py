"""A server that asks for keys, and the two callers of a run: one who means harm, and one who only wants an answer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ladle.benchmarks.faults.server_under_test import ServerUnderTest, serve
from ladle.server.access.api_keys import ApiKey
from ladle.server.access.callers import GENERATE, NO_LIMITS, Limits


@dataclass(frozen=True)
class TwoKeys:
    """A running server with the keys of two callers, as headers."""

    server: ServerUnderTest
    hostile: dict[str, str]
    other: dict[str, str]


@contextmanager
def serving(family: Path | None, limits: Limits = NO_LIMITS, options: Sequence[str] = ()) -> Iterator[TwoKeys]:
    """Serve ``family``, by default a random one, with two keys; ``limits`` are those of the hostile one."""
    with serving_several(family, [limits], options) as keys:
        yield keys[0]


@contextmanager
def serving_several(
    family: Path | None, limits: Sequence[Limits], options: Sequence[str] = ()
) -> Iterator[list[TwoKeys]]:
    """Serve ``family`` with a hostile key for each of ``limits``, beside one other caller."""
    headers, lines = [], []
    for index, own in enumerate([NO_LIMITS, *limits]):
        key, entry = ApiKey.new(f"hostile-{index}" if index else "other", (GENERATE,), own)
        headers.append({"authorization": f"Bearer {key}"})
        lines.append(entry.line())
    other, *hostile = headers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = family
        if root is None:
            # Imports torch, which the process of an attacker does without.
            from ladle.benchmarks.faults.stress_family import write_stress_family

            root = write_stress_family(folder / "family")
        (folder / "keys").write_text("\n".join([*lines, ""]))
        small = [] if family else ["--kv-memory", "8MiB", "--weights-memory", "8MiB"]
        with serve(root, folder / "server.log", [*small, "--api-key-file", str(folder / "keys"), *options]) as server:
            yield [TwoKeys(server, key, other) for key in hostile]
