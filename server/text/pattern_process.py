"""The process in which ``patterns`` has texts searched: a pattern and texts as JSON in, what was found as JSON out.

It is run as a file, by an interpreter that sees the standard library alone.
"""

from __future__ import annotations

import json
import re
import sys

_MEMORY = 256 << 20
_SECONDS = 2


def main() -> None:
    """Answer one question: a list with what was found in each text, or a string with what is wrong."""
    _limit()
    pattern, texts = json.load(sys.stdin)
    try:
        compiled = re.compile(pattern)
        group = 1 if compiled.groups else 0
        last = [None] * len(texts)
        for index, text in enumerate(texts):
            for match in compiled.finditer(text):
                last[index] = match.group(group)
    except re.error as error:
        json.dump(str(error), sys.stdout)
        return
    json.dump(last, sys.stdout)


def _limit() -> None:
    """Bound memory and time, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    except (ImportError, ValueError, OSError):
        return  # whoever asks stops waiting


if __name__ == "__main__":
    main()
