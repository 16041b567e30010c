"""Looks at a family as a newcomer does: everyday prompts at the corners and the centre, greedy and by default.

`python -m ladle.recipes.everyday demo --out families/demo`
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ladle.clients import Client
from ladle.guidance.registry import METHODS, takes_preference
from ladle.recipes.markdown import table
from ladle.recipes.sweeps.inputs import read_prompts, rewards_of
from ladle.recipes.sweeps.server import serving
from ladle.recipes.sweeps.sweep import TokenCounter
from ladle.recipes.text_metrics import is_degenerate

PROMPTS = 20
MAX_TOKENS = 64
STRANGERS = 3
AT_ONCE = 16
DRAWS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "default": {}}
"""What a request says about sampling; the rest is the family's default."""


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        place: name of the preference; ``base`` for the plain base.
        drawn: a key of ``DRAWS``.
        rewards: one per objective.
        relevance: how much likelier the base finds the prompt after this answer than after answers to other prompts,
            nats per token of the prompt.
    """

    place: str
    drawn: str
    prompt: str
    text: str
    rewards: tuple[float, ...]
    relevance: float

    @property
    def degenerate(self) -> bool:
        return is_degenerate(self.text.split())


def places(objectives: Sequence[str], method: str | None = None) -> dict[str, dict[str, float] | None]:
    """The corners, the centre and the plain base (None), by name; of a method that takes no preference it alone."""
    if method is not None and not takes_preference(method):
        return {"base": None, method: {}}
    corners: dict[str, dict[str, float] | None] = {name: {name: 1.0} for name in objectives}
    return {"base": None, **corners, "centre": dict.fromkeys(objectives, 1.0)}


def look(
    client: Client, objectives: Sequence[str], prompts: Sequence[str], seed: int = 0, method: str | None = None
) -> list[Answered]:
    """Ask every prompt at every place in both ways, and judge the answers.

    Args:
        client: of the server.
        objectives: of its family.
        prompts: what is asked.
        seed: of the first prompt's answers.
        method: by which preferences are followed; the family's default one for None.

    Raises:
        LadleError: what came of a request.
    """
    spots = places(objectives, method)
    counter = TokenCounter()
    rewards = rewards_of(objectives, [], counter)
    asked = [(place, drawn, number) for place in spots for drawn in DRAWS for number in range(len(prompts))]

    def answer(one: tuple[str, str, int]) -> str:
        place, drawn, number = one
        wish = spots[place]
        how: dict[str, Any] = {"method": "base"} if wish is None else {"method": method} if method else {}
        how |= {"preference": wish} if wish else {}
        reply = client.chat(prompts[number], max_tokens=MAX_TOKENS, seed=seed + number, **how, **DRAWS[drawn])
        assert reply.usage is not None
        ended = reply.choices[0].finish_reason == "stop"
        counter.saw(reply.text, reply.usage.completion_tokens - ended)
        return reply.text

    texts = _at_once(answer, asked)

    def surprise(pair: tuple[str, str]) -> float:
        return _surprise(client, *pair)

    own = _at_once(surprise, [(text, prompts[number]) for text, (_, _, number) in zip(texts, asked, strict=True)])
    strangers = [
        (texts[index - number + (number + step) % len(prompts)], prompts[number])
        for index, (_, _, number) in enumerate(asked)
        for step in range(1, STRANGERS + 1)
    ]
    others = np.array(_at_once(surprise, strangers)).reshape(len(asked), -1).mean(axis=1)
    return [
        Answered(
            place, drawn, prompts[number], text, tuple(reward(prompts[number], text) for reward in rewards),
            float(others[index] - own[index]),
        )
        for index, ((place, drawn, number), text) in enumerate(zip(asked, texts, strict=True))
    ]  # fmt: skip


def _at_once(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, items))


def _surprise(client: Client, answer: str, prompt: str) -> float:
    """Mean negative log-probability, nats per token, of the prompt behind an answer, under the plain base."""
    behind = f"{answer}\n\nThat was the answer to this: {prompt}"
    reply = client.generate(behind, method="base", max_tokens=1, temperature=0, prompt_logprobs=0)
    report: list[dict[str, Any] | None] = getattr(reply, "prompt_logprobs", None) or []
    said, length = [], 0
    for position in reversed(report):
        if position is None or length >= len(prompt):
            break
        (token,) = position.values()
        said.append(token["logprob"])
        length += len(token["decoded_token"])
    return -float(np.mean(said))


def summary(results: Sequence[Answered], objectives: Sequence[str]) -> list[list[str]]:
    """Rows of cells, the head first: one per place and way of drawing."""
    rows = [["place", "drawn", "degenerate", "about the prompt", "relevance", *objectives, "words"]]
    for place, drawn in dict.fromkeys((one.place, one.drawn) for one in results):
        own = [one for one in results if (one.place, one.drawn) == (place, drawn)]
        rewards = np.array([one.rewards for one in own]).mean(axis=0)
        rows.append(
            [
                place,
                drawn,
                f"{sum(one.degenerate for one in own)} of {len(own)}",
                f"{sum(one.relevance > 0 for one in own)} of {len(own)}",
                f"{np.mean([one.relevance for one in own]):.2f}",
                *(f"{reward:.2f}" for reward in rewards),
                f"{np.mean([len(one.text.split()) for one in own]):.0f}",
            ]
        )
    return rows


def write(results: Sequence[Answered], objectives: Sequence[str], out: Path, method: str | None = None) -> str:
    """``everyday.csv`` with every answer and ``EVERYDAY.md`` with the table, which is returned; the names of both end
    in ``-METHOD`` where one was asked for."""
    name = "" if method is None else f"-{method}"
    with (out / f"everyday{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["place", "drawn", "prompt", "relevance", "degenerate", *objectives, "text"])
        for one in results:
            figures = [f"{one.relevance:.3f}", int(one.degenerate), *(f"{reward:.3f}" for reward in one.rewards)]
            writer.writerow([one.place, one.drawn, one.prompt, *figures, one.text])
    shown = table(summary(results, objectives))
    prompts = len({one.prompt for one in results})
    how = (
        "the family's\ndefault method, greedy and with its"
        if method is None
        else f"`{method}`,\ngreedy and with the family's"
    )
    option = "" if method is None else f" --method {method}"
    text = f"""# The first minute with this family

{prompts} prompts about topics that no training saw, one answer each of at most {MAX_TOKENS} tokens, with {how}
default sampling. Every answer is in [everyday{name}.csv](everyday{name}.csv).

```
python -m ladle.recipes.everyday demo{option} --out families/demo
```

{shown}

*Degenerate*: under five words, under half of the words distinct, or four words in a row three times. *About the
prompt*: the base finds the prompt likelier behind this answer than behind the answers to {STRANGERS} other prompts at
the same place; *relevance* is by how much, in nats per token of the prompt. Rewards are means, in their own units.
"""
    (out / f"EVERYDAY{name}.md").write_text(text, encoding="utf-8")
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the answers and the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ladle everyday",
        description="Ask a family everyday prompts at the corners and the centre, and judge the answers.",
        epilog="example: python -m ladle.recipes.everyday demo --out families/demo",
    )
    parser.add_argument("target", help="a built-in family, a family's folder, or the URL of a server")
    parser.add_argument("--out", type=Path, required=True, help="folder for everyday.csv and EVERYDAY.md")
    parser.add_argument(
        "--prompts", default="everyday", help="prompts, as `ladle sweep` takes them (default: everyday)"
    )
    parser.add_argument("--limit", type=int, default=PROMPTS, help=f"number of prompts (default {PROMPTS})")
    parser.add_argument("--method", choices=sorted(METHODS), help="method (default: the family's default one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first prompt's answers (default 0)")
    arguments = parser.parse_args(argv)
    asked = read_prompts(arguments.prompts, "test")
    asked = asked[:: max(1, len(asked) // arguments.limit)][: arguments.limit]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with serving(arguments.target, arguments.out / "server.log") as url, Client(url, timeout=600) as client:
        objectives = client.families()[0].objectives
        results = look(client, objectives, asked, arguments.seed, arguments.method)
    (arguments.out / "server.log").unlink(missing_ok=True)
    print(write(results, objectives, arguments.out, arguments.method))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
