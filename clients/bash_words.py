"""Completion in bash, which takes a word apart at every ``=``: ``-p positive=0.8,con`` arrives as three words."""

import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO


@contextmanager
def answering_bash(environ: MutableMapping[str, str]) -> Iterator[None]:
    """While bash asks for completions: put its words together again, and answer for the last part of the word alone,
    which is all that bash replaces."""
    if environ.get("_LADLE_COMPLETE") != "complete_bash":
        yield
        return
    start = _join(environ)
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        words = [line.removeprefix(start) for line in said.getvalue().splitlines()]
        if len(words) == 1 and words[0].endswith("="):
            # Bash puts a space behind the only answer, but not behind the part that two have in common.
            words.append(f"{words[0]}1")
        sys.stdout.write("".join(f"{line}\n" for line in words))


def _join(environ: MutableMapping[str, str]) -> str:
    """Join words at ``=`` up to the one that is completed; the part of that one that bash takes for other words."""
    text = environ.get("COMP_WORDS", "")
    words = text.split("\n") if "\n" in text else text.split(" ")
    place = int(environ.get("COMP_CWORD") or 0)
    words = [*words[: place + 1], *[""] * (place + 1 - len(words))]
    joined: list[str] = []
    glued = False
    for word in words:
        if joined and (word == "=" or glued):
            joined[-1] += word
        else:
            joined.append(word)
        glued = word == "="
    environ["COMP_WORDS"] = "\n".join(joined)
    environ["COMP_CWORD"] = str(len(joined) - 1)
    current = joined[-1] if joined else ""
    # What is found for --option=value is the value alone.
    value = current.partition("=")[2] if current.startswith("--") else current
    return value[: value.rfind("=") + 1]
