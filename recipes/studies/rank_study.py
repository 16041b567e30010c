"""Does the best of n come out? Answers of a family, what they are judged by, and what the one that is kept is worth.

python -m ladle.recipes.studies.rank_study answers FAMILY --out FOLDER
python -m ladle.recipes.studies.rank_study merged FAMILY --out FOLDER
python -m ladle.recipes.studies.rank_study figures --out FOLDER
python -m ladle.recipes.studies.rank_study routed FAMILY --out FOLDER
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from ladle.clients import AsyncClient
from ladle.merging.preferences.simplex import grid
from ladle.recipes.sweeps.inputs import rewards_of
from ladle.recipes.sweeps.server import PLAIN, serving
from ladle.recipes.sweeps.sweep import TokenCounter
from ladle.recipes.text_metrics import bootstrap_mean, is_degenerate

app = typer.Typer(no_args_is_help=True, add_completion=False)
OBJECTIVES = ("positive", "simple", "concise")
SAMPLING: dict[str, Any] = {"max_tokens": 48, "temperature": 0.8, "top_p": 0.95, **PLAIN}
BY = ("explicit", "explicit_merged", "likelihood", "likelihood_per_token", "rewards")
"""What an answer is chosen by; the rewards themselves say what there is to be had."""

_DRAWS, _AT_ONCE, _TOGETHER = 4000, 4, 16
_CHECKED, _CLOSE = 8, 0.05
"""How many answers are valued one by one again, and how close that has to come."""
Family = Annotated[str, typer.Argument(help="A family, or the address of its server.")]
Out = Annotated[Path, typer.Option(help="Folder of the study.")]


@app.command()
def answers(
    family: Family,
    out: Out,
    n: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 8,
    sweep: Annotated[Path, typer.Option(help="Folder of a sweep whose prompts are asked.")] = Path(
        "studies/control/test"
    ),
    every: Annotated[int, typer.Option(min=1, help="Ask every so-many-th prompt only.")] = 2,
) -> None:
    """n answers to each prompt under the family's default method, with their scores by explicit values and by
    likelihood. Prompts take the preferences of a grid of thirds in turn."""
    prompts = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["prompts"][::every]
    preferences = grid(len(OBJECTIVES), 3)
    asked = [(prompt, preferences[index % len(preferences)]) for index, prompt in enumerate(prompts)]
    out.mkdir(parents=True, exist_ok=True)
    with _server(family) as url:
        ranked = asyncio.run(_ranked(url, asked, n))
    counter = TokenCounter()
    rewards = rewards_of(OBJECTIVES, [], counter)
    for row in ranked:
        counter.saw(row["text"], row["tokens"] - (row["finish_reason"] == "stop"))
        for name, reward in zip(OBJECTIVES, rewards, strict=True):
            row[f"reward_{name}"] = round(reward(asked[row["prompt"]][0], row["text"]), 6)
    _write(out / "answers.csv.gz", ranked)


async def _ranked(url: str, asked: Sequence[tuple[str, Any]], n: int) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(url, timeout=1800) as client:

        async def one(index: int) -> list[dict[str, Any]]:
            prompt, weights = asked[index]
            steering: dict[str, Any] = {
                "preference": dict(zip(OBJECTIVES, map(float, weights), strict=True)),
                "rank": {"by": "explicit", "keep": n},
            }
            async with gate:
                reply = await client.chat(prompt, steering=steering, seed=index, n=n, logprobs=True, **SAMPLING)
            typer.echo(f"prompt {index}", err=True)
            return [
                {
                    "prompt": index, "preference": " ".join(f"{weight:g}" for weight in weights), "place": place,
                    "tokens": len(choice.tokens or []), "finish_reason": choice.finish_reason,
                    "explicit": choice.score, "likelihood": round(sum(t.logprob for t in choice.tokens or []), 6),
                    "text": choice.text, "ids": " ".join(str(token.id) for token in choice.tokens or []),
                }
                for place, choice in enumerate(reply.choices)
            ]  # fmt: skip

        return [row for rows in await asyncio.gather(*map(one, range(len(asked)))) for row in rows]


@app.command()
def merged(
    family: Annotated[str, typer.Argument(help="Built-in name, or a folder with family.toml.")],
    out: Out,
    sweep: Annotated[Path, typer.Option()] = Path("studies/control/test"),
    every: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """What the merged explicit value says of the same answers: one model in place of one for each objective."""
    from ladle.guidance.plan import Rank, Steering
    from ladle.guidance.registry import resolve
    from ladle.guidance.values import guides
    from ladle.merging.family.family import load_family
    from ladle.merging.preferences.preference import Preference
    from ladle.server.engine.async_engine import AsyncEngine
    from ladle.server.engine.engine import Engine
    from ladle.server.engine.engine_config import EngineConfig
    from ladle.server.engine.requests.request import GenerationRequest, Score
    from ladle.server.engine.requests.sampling_params import SamplingParams

    prompts = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["prompts"][::every]
    rows = _read(out / "answers.csv.gz")
    loaded = load_family(family)
    engine = Engine(loaded, EngineConfig(device="cpu"))
    engine.start()
    asking = AsyncEngine(engine)

    async def value(row: dict[str, Any], index: int) -> tuple[float, float | None]:
        """What is said of one answer: merged, and for the first few one by one."""
        weights = dict(zip(OBJECTIVES, map(float, row["preference"].split()), strict=True))
        preference = Preference.of(weights, loaded.objectives)
        message = [{"role": "user", "content": prompts[int(row["prompt"])]}]
        ids = engine.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        plan = resolve(loaded, Steering.parse({"method": "base"}))

        async def judged(combine: Literal["merged", "ensemble"]) -> Score:
            parts, _ = guides(loaded, "explicit", preference, combine, combine)
            rank = Rank("explicit", sources=tuple(part.source() for part in parts))
            request = GenerationRequest(
                f"{combine}{index}", tuple(ids), replace(plan, rank=rank), SamplingParams(max_tokens=0),
                answer=tuple(map(int, row["ids"].split())),
            )  # fmt: skip
            async for output in asking.stream(request):
                if output.score is not None:
                    return output.score
            raise RuntimeError("no score came")

        said = await judged("merged")
        return said.value, ((await judged("ensemble")).value if index < _CHECKED else None)

    async def values() -> list[tuple[float, float | None]]:
        gate = asyncio.Semaphore(_TOGETHER)

        async def one(index: int, row: dict[str, Any]) -> tuple[float, float | None]:
            async with gate:
                return await value(row, index)

        return list(await asyncio.gather(*(one(index, row) for index, row in enumerate(rows))))

    said = asyncio.run(values())
    engine.shutdown()
    for row, (merged_value, alone) in zip(rows, said, strict=True):
        row["explicit_merged"] = round(merged_value, 6)
        if alone is not None and abs(alone - float(row["explicit"])) > _CLOSE:
            raise ValueError(f"the ensemble says {alone} of an answer of which the server said {row['explicit']}")
    _write(out / "answers.csv.gz", rows)


@app.command()
def figures(
    out: Out,
    sweep: Annotated[Path, typer.Option(help="Folder of the sweep with the base's own answers.")] = Path(
        "studies/control/test"
    ),
) -> None:
    """What the kept answer is worth: mean mu.z in standard deviations of the base's own answers, with intervals over
    prompts. ``one``: the mean over the n answers, which is what one answer is worth on average."""
    with gzip.open(sweep / "samples.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        base = [row for row in csv.DictReader(stream) if row["setting"] == "base"]
    own = {name: [float(row[f"reward_{name}"]) for row in base] for name in OBJECTIVES}
    scale = {name: (statistics.fmean(values), statistics.pstdev(values)) for name, values in own.items()}
    groups = list(_by_prompt(_read(out / "answers.csv.gz"), scale))
    table = []
    one = np.array([[np.mean([row["worth"] for row in group])] for group in groups])
    pool = float(np.mean([np.std([row["worth"] for row in group]) for group in groups]))
    known = [by for by in BY if by in groups[0][0]]
    kept = {by: [max(group, key=lambda row: row[by]) for group in groups] for by in known}
    worth = {"one": one, **{by: np.array([[pick["worth"]] for pick in picks]) for by, picks in kept.items()}}
    for by, own_worth in worth.items():
        entry: dict[str, Any] = {"by": by, "prompts": len(groups), "answers": len(groups[0])}
        compared = {"mu_z": own_worth, "over_one": own_worth - one, "over_likelihood": own_worth - worth["likelihood"]}
        for name, values in compared.items():
            mean, low, high = bootstrap_mean(values, draws=_DRAWS, seed=0)
            entry |= {name: round(mean, 3), f"{name}_low": round(low, 3), f"{name}_high": round(high, 3)}
        entry["over_one_in_pool_deviations"] = round(entry["over_one"] / pool, 3)
        shown = kept.get(by, [row for group in groups for row in group])
        entry["degenerate"] = round(float(np.mean([is_degenerate(row["text"].split()) for row in shown])), 4)
        table.append(entry)
    _write(out / "best.csv", table)
    for entry in table:
        typer.echo("  ".join(f"{key} {value}" for key, value in entry.items()))
    if "explicit_merged" in known:
        _write(out / "merged.csv", _merged_rows(groups, worth["explicit"] - worth["explicit_merged"]))


def _merged_rows(groups: Sequence[Sequence[Mapping[str, Any]]], lost: np.ndarray) -> list[dict[str, Any]]:
    """How much of the values' spread within a prompt the merged one keeps, how alike they order, and what its choice
    loses, which no factor on it changes: at each preference, and at all that mix objectives."""
    rows = []
    preferences = dict.fromkeys(group[0]["preference"] for group in groups)
    mixed = [preference for preference in preferences if preference.split().count("0") < len(OBJECTIVES) - 1]
    for name, among in (*((preference, [preference]) for preference in preferences), ("mixed", mixed)):
        own = [index for index, group in enumerate(groups) if group[0]["preference"] in among]
        said = {by: np.array([[row[by] for row in groups[index]] for index in own]) for by in BY[:2]}
        spread = {by: float(values.std(axis=1).mean()) for by, values in said.items()}
        alike = [np.corrcoef(*pair)[0, 1] for pair in zip(*said.values(), strict=True)]
        loss = bootstrap_mean(lost[own], draws=_DRAWS, seed=0)
        row = {
            "preference": name, "prompts": len(own), "spread": round(spread["explicit"], 4),
            "spread_merged": round(spread["explicit_merged"], 4),
            "kept": round(spread["explicit_merged"] / spread["explicit"], 3),
            "correlation": round(float(np.mean(alike)), 3),
            **{key: round(value, 3) for key, value in zip(("lost", "lost_low", "lost_high"), loss, strict=True)},
        }  # fmt: skip
        rows.append(row)
        typer.echo("  ".join(f"{key} {value}" for key, value in row.items()))
    return rows


def _by_prompt(
    rows: Sequence[Mapping[str, Any]], scale: Mapping[str, tuple[float, float]]
) -> Iterator[list[dict[str, Any]]]:
    """The answers to one prompt after the other, with what they are worth and what they may be chosen by."""
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        group = []
        for row in rows:
            if row["prompt"] != prompt:
                continue
            weights = map(float, row["preference"].split())
            parts = zip(OBJECTIVES, weights, strict=True)
            worth = sum(w * (float(row[f"reward_{name}"]) - scale[name][0]) / scale[name][1] for name, w in parts)
            by = {name: float(row[name]) for name in ("explicit", "explicit_merged", "likelihood") if row.get(name)}
            by["likelihood_per_token"] = by["likelihood"] / max(1, int(row["tokens"]))
            group.append({"worth": worth, "preference": row["preference"], "rewards": worth, "text": row["text"], **by})
        yield group


@app.command()
def routed(
    family: Family,
    out: Out,
    recipe: Annotated[str, typer.Option(help="The recipe that the experts were trained by.")] = "demo",
) -> None:
    """Whole answers of experts, chosen by the router's likelihood: the share that is right."""
    from ladle.recipes.config import load_recipe
    from ladle.recipes.domains.domains import is_right, questions
    from ladle.recipes.experts.route import needed

    loaded = load_recipe(recipe)
    config = needed(loaded.routing_evaluation, "routing_evaluation")
    domains = list(needed(loaded.experts, "experts").samples)
    asked = [question for domain in domains for question in questions(domain, "test", config.prompts, config.seed)]
    out.mkdir(parents=True, exist_ok=True)
    with _server(family) as url:
        rows = asyncio.run(_whole(url, domains, [question.task.prompt for question in asked], config.max_tokens))
    for row in rows:
        question = asked[row["question"]]
        row["domain"], row["right"] = question.domain, int(is_right(question, row["text"]))
    _write(out / "routed.csv.gz", rows)
    table = []
    for by in ("router_per_token", "router"):
        kept = [max((r for r in rows if r["question"] == q), key=lambda r: r[by]) for q in range(len(asked))]
        for domain in (*domains, "all"):
            right = [[row["right"]] for row in kept if domain in (row["domain"], "all")]
            mean, low, high = bootstrap_mean(np.array(right), draws=_DRAWS, seed=0)
            table.append({"by": by, "domain": domain, "questions": len(right), "right": round(mean, 3),
                          "low": round(low, 3), "high": round(high, 3)})  # fmt: skip
            typer.echo("  ".join(f"{key} {value}" for key, value in table[-1].items()))
    _write(out / "routed.csv", table)


async def _whole(url: str, experts: Sequence[str], prompts: Sequence[str], most: int) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(_TOGETHER)
    async with AsyncClient(url, timeout=1800) as client:

        async def one(index: int) -> list[dict[str, Any]]:
            prompt = prompts[index]
            async with gate:
                replies = []
                for expert in experts:
                    steering: dict[str, Any] = {"method": "custom", "terms": [{"source": expert, "weight": 1}]}
                    sampling: dict[str, Any] = {**PLAIN, "temperature": 0.0, "max_tokens": most}
                    replies.append(await client.chat(prompt, steering=steering, logprobs=True, **sampling))
                choices = [reply.choices[0] for reply in replies]
                texts = [[token.id for token in choice.tokens or []] for choice in choices]
                messages = [{"role": "user", "content": prompt}]
                said = await client.score(messages, texts, by="router", method="base")
            return [
                {"question": index, "expert": expert, "text": choice.text, "tokens": score.tokens,
                 "router": score.score, "router_per_token": score.score / max(1, score.tokens)}
                for expert, choice, score in zip(experts, choices, said.scores, strict=True)
            ]  # fmt: skip

        return [row for rows in await asyncio.gather(*map(one, range(len(prompts)))) for row in rows]


@contextmanager
def _server(family: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, serving(family, Path(folder) / "log") as url:
        yield url


def _read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if file.suffix == ".gz":
        # Without a name or a time in it, so that the same rows are the same file.
        with file.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            packed.write(_text(rows).encode())
    else:
        file.write_text(_text(rows), encoding="utf-8")


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    made = io.StringIO()
    writer = csv.DictWriter(made, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue()


if __name__ == "__main__":
    app()
