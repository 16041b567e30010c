"""Where a sweep gets its answers: a server that runs, or one started for it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.clients import AsyncClient

PLAIN = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What a sweep asks for besides temperature and top-p, so that no default of a family's own enters a measurement."""


_BOUND = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which stays where another program is run
if os.getppid() == int(parent):
    os.execvp(command[0], command)
"""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: as it was shown.
        tokens: how many there are, the end-of-text token included.
        finish_reason: as the server says it.
        base_logprob: of all of it under the plain base, in nats; None where it was not asked for.
    """

    text: str
    tokens: int
    finish_reason: str
    base_logprob: float | None


async def ask(
    client: AsyncClient, prompt: str, steering: dict[str, Any], seed: int, judged: bool, **sampling: Any
) -> Reply:
    """The answer to one user message.

    Args:
        judged: trace the tokens, to know how likely the plain base finds them.
        **sampling: of the request, such as ``max_tokens``.

    Raises:
        LadleError: what came of it.
    """
    options = {**steering, "trace": True} if judged else steering
    answer = await client.chat(prompt, steering=options, seed=seed, **{**PLAIN, **sampling})
    choice = answer.choices[0]
    logprobs = [token.base_logprob for token in choice.tokens or []]
    known = bool(judged and logprobs and all(value is not None for value in logprobs))
    return Reply(
        choice.text,
        answer.usage.completion_tokens if answer.usage else len(logprobs),
        choice.finish_reason or "",
        sum(value for value in logprobs if value is not None) if known else None,
    )


@contextlib.contextmanager
def serving(target: str, log: Path, *options: str) -> Iterator[str]:
    """The address of a server of ``target``: itself if it is one, else one that lives as long as this context.

    Args:
        target: a URL, a built-in family's name or a family's folder.
        log: file that gets what the started server says.
        *options: of ``ladle serve``.

    Raises:
        RuntimeError: the server ended before it was ready; its last words.
    """
    if target.startswith(("http://", "https://")):
        yield target.rstrip("/")
        return
    program = [str(Path(sys.executable).parent / "ladle"), "serve", target, "--port", "0", "--json", *options]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(bound(program), stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _address(process, log)
        finally:
            end(process)
            assert process.stdout is not None
            process.stdout.close()


def bound(command: Sequence[str]) -> list[str]:
    """``command``, made to end with the process that runs it, however that ends (on Linux; elsewhere it stays).

    The thread that starts it has to last as long: to the system it is the parent.
    """
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


def end(process: subprocess.Popen[Any], patience_s: float = 30) -> None:
    """Ends a server: SIGTERM, and SIGKILL if it is still there after ``patience_s`` seconds."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """What the server prints once it is ready."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        with contextlib.suppress(json.JSONDecodeError):
            return str(json.loads(said)["url"])
    process.wait()
    last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] or ["it said nothing"]
    raise RuntimeError(f"the server did not start: {last[0]}")
