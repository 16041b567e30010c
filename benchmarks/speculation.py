"""What drafts save: answers that repeat their prompt and answers that do not, by who drafts and without, in turns.

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
from ladle.server.engine.stats.stats import EngineStats

TOKENS = 96
_KV_MEMORY = 512 << 20
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
    """A row per method, kind of prompt and batch size: tokens per second of all sides, and by who drafts how much more
    that is, round by round.

    ``most``: tokens that are drafted in a step. Where the family names a draft model, it drafts as well, alone
    (``model``) and where no text is repeated (``both``).
    """
    who = {"ngram": {"draft_tokens": most}}
    if family.manifest.speculation is not None:
        who |= {"model": {"model_draft_tokens": most}, "both": {"draft_tokens": most, "model_draft_tokens": most}}
    # Four engines at once: each has memory for what is asked of it here, and no more.
    sides = {
        name: EngineSide(family, dtype, kv_memory=_KV_MEMORY, **options)
        for name, options in {"plain": {}, **who}.items()
    }
    even = dict.fromkeys(family.objectives, 1.0)
    plans = {"base": Steering(method="base"), "merged": Steering(method="bone_soup", preference=even)}
    plans["guided"] = Steering(method="mage", preference=even, value="implicit")
    tokenizer = sides["plain"].engine.tokenizer
    for method, steering in plans.items():
        for what, write, temperature in (("copied", _copied, 0.0), ("other", _other, 0.0), ("other", _other, 1.0)):
            for batch in batches:
                times: dict[str, list[float]] = {name: [] for name in sides}
                same: dict[str, list[bool]] = {name: [] for name in sides}
                before = {name: sides[name].engine.stats() for name in who}
                for turn in range(rounds + 1):
                    rng = random.Random(turn)
                    prompts = [tokenizer.encode(write(rng)) for _ in range(batch)]
                    texts: list[list[list[int]]] = []
                    for name, side in sides.items():
                        seconds, tokens = _answer(side, family, steering, prompts, temperature, turn)
                        texts.append(tokens)
                        same[name].append(tokens == texts[0])
                        if turn:
                            times[name].append(seconds)
                rates = {f"{name}_tokens_per_s": round(batch * TOKENS / s, 1) for name, s in medians(times).items()}
                row: dict[str, object] = {
                    "method": method, "prompts": what, "temperature": temperature, "batch": batch, "dtype": dtype,
                    "rounds": rounds, **rates,
                }  # fmt: skip
                for name in who:
                    gain, quartiles = ratio(times["plain"], times[name])
                    row |= {f"{name}_gain": gain, f"{name}_quartiles": quartiles}
                    row[f"{name}_same"] = round(sum(same[name]) / len(same[name]), 3)
                    row |= _drafts(name, before[name], sides[name].engine.stats())
                yield row


def _drafts(name: str, before: EngineStats, after: EngineStats) -> dict[str, object]:
    """What side ``name`` drafted in between, and the share of it that was drawn; the draft model's seconds."""
    drafted, accepted = (
        sum(late.values()) - sum(early.values())
        for early, late in (
            (before.drafted_tokens, after.drafted_tokens),
            (before.accepted_tokens, after.accepted_tokens),
        )
    )
    row: dict[str, object] = {f"{name}_drafted": drafted, f"{name}_accepted": round(accepted / max(1, drafted), 3)}
    if name != "ngram":
        row[f"{name}_guess_s"] = round(after.guess_seconds - before.guess_seconds, 3)
    return row


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
