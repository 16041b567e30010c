"""The lines that tests ran, a row per room, and every line of every file as HTML; see `make coverage`.

python tools/coverage_table.py        # of the data in build/coverage
"""

import sys
from collections import Counter
from pathlib import Path

from coverage import Coverage
from coverage.exceptions import CoverageException

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("package", "kernels", "merging", "guidance", "server/engine", "server", "clients", "recipes", "benchmarks")


def room_of(path: Path) -> str | None:
    """The room that a file of the repository is part of; a room inside another one comes before it."""
    return next((room for room in ROOMS if path.is_relative_to(ROOT / room)), None)


def lines_by_room(coverage: Coverage) -> dict[str, tuple[int, int]]:
    """Room -> (lines with code, those that were run), in the order of ``ROOMS``."""
    statements: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for name in coverage.get_data().measured_files():
        room = room_of(Path(name))
        if room is not None and Path(name).exists():
            _, lines, _, unrun, _ = coverage.analysis2(name)
            statements[room] += len(lines)
            missing[room] += len(unrun)
    return {room: (statements[room], statements[room] - missing[room]) for room in ROOMS if statements[room]}


def table(rooms: dict[str, tuple[int, int]]) -> str:
    """The rows as text, with a last one for all rooms together."""
    rows = [*rooms.items(), ("all", tuple(sum(column) for column in zip(*rooms.values(), strict=True)))]
    lines = [f"{'room':<16}{'lines':>8}{'run':>8}{'%':>8}"]
    return "\n".join([*lines, *(f"{name:<16}{of:>8}{run:>8}{100 * run / of:>8.1f}" for name, (of, run) in rows)])


def main() -> int:
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    try:
        coverage.load()
        coverage.html_report()
        rooms = lines_by_room(coverage)
    except CoverageException as error:
        print(f"error: there are no data of a run in build/coverage: {error}", file=sys.stderr)
        return 1
    print(table(rooms))
    print("build/coverage/index.html has every line")
    return 0


if __name__ == "__main__":
    sys.exit(main())
