"""What drafts save: answers that repeat their prompt and answers that do not, with drafts and without, in turns.

Texts are compared too: drafts that changed one would show as ``same`` below 1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import medians, ratio
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.family.family import Family
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

TOKENS = 96
_NAMES = ("Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam")
_TOWNS = ("Lisbon", "Oslo", "Porto", "Quito", "Riga", "Seoul", "Turin", "Utrecht", "Vienna", "Zagreb")
_TOPICS = ("rain", "bread", "trains", "the sea", "chess", "gardens", "winter", "music", "maps", "bees", "clocks", "tea")
Prompts = Sequence[Sequence[int]]


def _copied(rng: random.Random) -> str:
    lines = [
        f'{{"name": "{rng.choice(_NAMES)}", "town": "{rng.choice(_TOWNS)}", "age": {rng.randint(18, 90)}}}'
        for _ in range(6)
    ]
    text = "\n".join(lines)
    return f"Repeat these lines exactly as they are:\n{text}\n\nThe same lines again:\n{lines[0]}\n"


def _other(rng: random.Random) -> str:
    return f"Tell me about {rng.choice(_TOPICS)} and {rng.choice(_TOPICS)}, in your own words."


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int, most: int) -> Iterator[dict[str, object]]:
    """A row per method, kind of prompt and batch size: tokens per second of both sides and their ratio, round by round.

    ``most``: tokens that are drafted in a step.
    """
    sides = {"plain": EngineSide(family, dtype), "drafts": EngineSide(family, dtype, draft_tokens=most)}
    even = dict.fromkeys(family.objectives, 1.0)
    plans = {"base": Steering(method="base"), "merged": Steering(method="bone_soup", preference=even)}
    plans["guided"] = Steering(method="mage", preference=even, value="implicit")
    tokenizer = sides["plain"].engine.tokenizer
    for method, steering in plans.items():
        for what, write, temperature in (("copied", _copied, 0.0), ("other", _other, 1.0)):
            for batch in batches:
                times: dict[str, list[float]] = {name: [] for name in sides}
                same: list[bool] = []
                before = sides["drafts"].engine.stats()
                for turn in range(rounds + 1):
                    rng = random.Random(turn)
                    prompts = [tokenizer.encode(write(rng)) for _ in range(batch)]
                    texts = []
                    for name, side in sides.items():
                        seconds, tokens = _answer(side, family, steering, prompts, temperature, turn)
                        texts.append(tokens)
                        if turn:
                            times[name].append(seconds)
                    same.append(texts[0] == texts[1])
                after = sides["drafts"].engine.stats()
                drafted = after.drafted_tokens - before.drafted_tokens
                gain, quartiles = ratio(times["plain"], times["drafts"])
                rates = {f"{name}_tokens_per_s": round(batch * TOKENS / s, 1) for name, s in medians(times).items()}
                yield {
                    "method": method, "prompts": what, "batch": batch, "dtype": dtype, "rounds": rounds, **rates,
                    "gain": gain, "quartiles": quartiles, "same": round(sum(same) / len(same), 3),
                    "drafted": drafted,
                    "accepted": round((after.accepted_tokens - before.accepted_tokens) / max(1, drafted), 3),
                }  # fmt: skip


def _answer(
    side: EngineSide, family: Family, steering: Steering, prompts: Prompts, temperature: float, turn: int
) -> tuple[float, list[list[int]]]:
    """Seconds from the first token of all answers to the last of all, and the tokens."""
    outputs: dict[str, list[int]] = {}

    def listen(batch: list[StepOutput]) -> None:
        for output in batch:
            outputs.setdefault(output.request_id, []).append(output.token)

    engine, plan = side.engine, resolve(family, steering)
    for index, ids in enumerate(prompts):
        prompt = tuple(ids)
        sampling = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=1000 * turn + index, ignore_eos=True)
        views = dict.fromkeys(plan.views, prompt)
        engine.submit(GenerationRequest(str(index), prompt, plan, sampling, views), listen)
    engine.step()
    while len(outputs) < len(prompts):
        engine.step()
    start = time.perf_counter()
    while engine.step():
        pass
    return time.perf_counter() - start, [outputs[str(index)] for index in range(len(prompts))]
