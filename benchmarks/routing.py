"""Routed decoding: what experts in the bank cost over plain decoding, and what laziness saves where they have weights
of their own; interleaved."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import interleave, medians, ratio
from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family, load_family
from ladle.merging.merges.export import export
from ladle.recipes.domains.domains import DOMAINS, questions
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

BURST = 6
ANSWER_TOKENS = 40
PLAIN = Steering(method="base")
ROUTED = Steering(method="fusion_route")


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a batch size: milliseconds of a step, plain and routed, both schedules; then a row for whole answers of
    experts with weights of their own.

    Raises:
        InputError: the family has no experts with a router.
    """
    if family.router is None:
        raise InputError("family", family.name, "a family with experts and a router")
    sides = {schedule: EngineSide(family, dtype, expert_schedule=schedule) for schedule in ("eager", "lazy")}
    for batch in batches:
        burst: dict[str, Callable[[], Iterator[float]]] = {
            "plain": lambda batch=batch: sides["eager"].burst(batch, BURST, lambda row: PLAIN),  # type: ignore[misc]
            **{
                schedule: lambda batch=batch, side=side: side.burst(batch, BURST, lambda row: ROUTED)  # type: ignore[misc]
                for schedule, side in sides.items()
            },
        }
        yield _row("experts in the bank", batch, dtype, "ms a step", interleave(burst, rounds), 1e3)
    sides.clear()
    with tempfile.TemporaryDirectory() as folder:
        yield from _full(load_family(_with_full_experts(family, Path(folder) / "family")), dtype, rounds)


def _full(family: Family, dtype: str, rounds: int) -> Iterator[dict[str, object]]:
    answers = {schedule: _Answers(family, dtype, schedule) for schedule in ("eager", "lazy")}
    for batch in (1, len(DOMAINS)):
        asked: dict[str, Callable[[], Iterator[float]]] = {
            "plain": lambda batch=batch: answers["eager"].seconds(PLAIN, batch),  # type: ignore[misc]
            **{
                schedule: lambda batch=batch, side=side: side.seconds(ROUTED, batch)  # type: ignore[misc]
                for schedule, side in answers.items()
            },
        }
        times = interleave(asked, max(2, rounds // 3))
        yield _row("experts with weights of their own", batch, dtype, "s for all answers", times, 1.0)


class _Answers:
    """One question a domain, answered from the prompt to the end."""

    def __init__(self, family: Family, dtype: str, schedule: str) -> None:
        config = EngineConfig(dtype=dtype, max_sequences=8, prefix_cache=False, expert_schedule=schedule)
        self.engine = Engine(family, config)
        self._family = family
        tokenizer = self.engine.tokenizer
        texts = [questions(domain, "test", 1, 0)[0].task.prompt for domain in DOMAINS]
        chats = [[{"role": "user", "content": text}] for text in texts]
        self._prompts = [
            tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats
        ]

    def seconds(self, steering: Steering, batch: int) -> Iterator[float]:
        """The time of all answers, ``batch`` of them at once."""
        start = time.perf_counter()
        for first in range(0, len(self._prompts), batch):
            self._answer(self._prompts[first : first + batch], steering)
        yield time.perf_counter() - start

    def _answer(self, prompts: Sequence[tuple[int, ...]], steering: Steering) -> None:
        plan = resolve(self._family, steering)
        left = len(prompts)

        def hear(outputs: list[StepOutput]) -> None:
            nonlocal left
            left -= sum(output.finish_reason is not None for output in outputs)

        for index, prompt in enumerate(prompts):
            # As many tokens on each side, whatever it says.
            sampling = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
            self.engine.submit(GenerationRequest(str(index), prompt, plan, sampling, {}), hear)
        while left:
            if not self.engine.step():
                time.sleep(0.002)  # weights are being loaded


def _with_full_experts(family: Family, folder: Path) -> Path:
    """A copy of ``family`` in ``folder`` whose experts are full checkpoints, under the same router."""
    assert family.router is not None
    lines = [f"name = {json.dumps(family.name)}", "objectives = []", "[base]"]
    lines.append(f"model = {json.dumps(str(family.base_path))}")
    for name in family.experts:
        export(family, {family.members_of[name]: 1.0}, folder / name)
        lines += ["[[experts]]", f"name = {json.dumps(name)}", f"path = {json.dumps(name)}"]
    path = family.manifest.router.path if family.manifest.router is not None else ""
    lines += ["[router]", f"path = {json.dumps(str(family.root / path))}"]
    (folder / "family.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _row(
    setting: str, batch: int, dtype: str, unit: str, times: dict[str, list[float]], scale: float
) -> dict[str, object]:
    typical = medians(times)
    row: dict[str, object] = {"setting": setting, "batch": batch, "dtype": dtype, "rounds": len(times["plain"])}
    row["unit"] = unit
    for name in times:
        row[name] = round(scale * typical[name], 2)
    for name in ("eager", "lazy"):
        row[f"{name}_over_plain"], row[f"{name}_over_plain_quartiles"] = ratio(times[name], times["plain"])
    row["lazy_over_eager"], _ = ratio(times["lazy"], times["eager"])
    return row
