"""A sweep: every method at every preference on the same prompts and seeds, through a server's own batching."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ladle.clients import AsyncClient
from ladle.recipes.rewards import Reward
from ladle.recipes.sweeps.grid import Setting
from ladle.recipes.sweeps.plots import write_plots
from ladle.recipes.sweeps.server import ask
from ladle.recipes.sweeps.store import Sample, SampleStore
from ladle.recipes.sweeps.summary import RewardTable, summarise

SUMMARY = "summary.json"
_PATIENCE = 8
"""Repeats of a request to a server that is full; its Retry-After is kept to."""


class TokenCounter:
    """Tokens of an answer as the server counted them, for rewards that ask for a text's length."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def saw(self, text: str, tokens: int) -> None:
        self._counts[text] = tokens

    def __call__(self, text: str) -> int:
        return self._counts[text]


async def collect(
    url: str,
    family: str,
    objectives: Sequence[str],
    settings: Sequence[Setting],
    prompts: Sequence[str],
    answers: int,
    seed: int,
    sampling: Mapping[str, Any],
    rewards: Sequence[Reward],
    counter: TokenCounter,
    store: SampleStore,
    *,
    judged: int = 1,
    at_once: int = 16,
    api_key: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Ask for all answers that ``store`` lacks, ``at_once`` at a time.

    The seed of an answer depends on its prompt and number alone, so settings are compared on the same draws.

    Args:
        rewards: one per objective, in their order.
        judged: how many answers per prompt, the first ones, the plain base judges as well (see ``ask``).

    Raises:
        LadleError: a request that failed for good; what came before it is kept.
    """
    wanted = [
        (setting, prompt, number)
        for setting in settings
        for prompt in range(len(prompts))
        for number in range(answers)
        if (setting.key, prompt, number) not in store.samples
    ]
    total = len(settings) * len(prompts) * answers
    done = total - len(wanted)
    progress(done, total)
    pending = iter(wanted)

    async def work(client: AsyncClient) -> None:
        nonlocal done
        for setting, prompt, number in pending:
            own = seed + prompt * answers + number
            steering = setting.request(objectives)
            reply = await ask(client, prompts[prompt], steering, own, number < judged, model=family, **sampling)
            counter.saw(reply.text, reply.tokens - (reply.finish_reason == "stop"))
            scores = {
                name: reward(prompts[prompt], reply.text) for name, reward in zip(objectives, rewards, strict=True)
            }
            store.add(
                Sample(
                    setting.key, prompt, number, own, reply.text, reply.tokens, reply.finish_reason,
                    reply.base_logprob, scores,
                )
            )  # fmt: skip
            done += 1
            progress(done, total)

    async with AsyncClient(url, api_key=api_key, max_retries=_PATIENCE) as client:
        workers = [asyncio.create_task(work(client)) for _ in range(at_once)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


def conclude(
    store: SampleStore, settings: Sequence[Setting], objectives: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    """Writes ``summary.json`` and the plots from what ``store`` has; returns the summary.

    Raises:
        ValueError: the base's answers are not all there.
    """
    summary = summarise(RewardTable(settings, store.samples, objectives), draws, seed)
    text = json.dumps(summary, indent=2, allow_nan=False)
    (store.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    write_plots(summary, store.folder)
    return summary
