"""What extras of pyproject.toml ask for, one requirement a line, without Ladle itself and its families.

python tools/requirements.py server otel

For images: other people's packages are a layer of their own, which a change of our code leaves as it is.
"""

import re
import sys
import tomllib
from pathlib import Path

FAMILIES = "ladle-families"
PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


def requirements(extras: list[str]) -> list[str]:
    """The requirements of ``extras`` and of the extras that they name, each once. Raises KeyError for a strange one."""
    names = dict.fromkeys(PROJECT["dependencies"])
    waiting, seen = list(extras), set(extras)
    while waiting:
        for requirement in PROJECT["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(r"ladle\[(.+)\]", requirement)
            if own is None:
                names |= {} if requirement.startswith(FAMILIES) else {requirement: None}
                continue
            more = [extra.strip() for extra in own[1].split(",")]
            waiting += [extra for extra in more if extra not in seen]
            seen.update(more)
    return sorted(names)


if __name__ == "__main__":
    try:
        print("\n".join(requirements(sys.argv[1:])))
    except KeyError as error:
        sys.exit(f"error: no extra {error}; there are {', '.join(PROJECT['optional-dependencies'])}")
