"""Does a search help? Questions with right answers under several settings, and what a search draws for an answer.

python -m ladle.recipes.studies.search_study questions demo --out studies/search
python -m ladle.recipes.studies.search_study cost demo
ladle sweep demo -m bone_soup -m 'bone_soup:search={"by":"explicit","until":16,"draws":4}' --points 3 --out SWEEP
python -m ladle.recipes.studies.search_study figures SWEEP --out studies/search
"""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ladle.clients import AsyncClient
from ladle.recipes.sweeps.server import PLAIN, serving
from ladle.recipes.text_metrics import bootstrap_mean

app = typer.Typer(no_args_is_help=True, add_completion=False)
DRAWN = {"temperature": 0.8, "top_p": 0.95}
DOUBT = {"entropy": [0.01, 1.5], "most": 10}
ROUTED = {"method": "fusion_route"}
MATH = {"method": "custom", "terms": [{"source": "math", "weight": 1}]}
EXPLICIT = {"by": "explicit", "until": 16, "draws": 4}
_AT_ONCE = 16


def _cautious(until: str) -> dict[str, Any]:
    """Cautious Next Token Prediction."""
    return {"by": "likelihood", "until": until, "draws": DOUBT}


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "routed, CNTP to any punctuation": ({**ROUTED, "search": _cautious("punctuation")}, DRAWN),
    "routed, drawn": (ROUTED, DRAWN),
    "routed, greedy": (ROUTED, {"temperature": 0}),
    "routed, CNTP to the end of a sentence": ({**ROUTED, "search": _cautious("sentence")}, DRAWN),
    "expert math, greedy": (MATH, {"temperature": 0}),
    "expert math, drawn": (MATH, DRAWN),
    "expert math, CNTP to the end of a sentence": ({**MATH, "search": _cautious("sentence")}, DRAWN),
    "expert math, CNTP to any punctuation": ({**MATH, "search": _cautious("punctuation")}, DRAWN),
}


@app.command(name="questions")
def ask_questions(
    family: Annotated[str, typer.Argument(help="A family with experts and a router, or its server's address.")],
    out: Annotated[Path, typer.Option(help="Folder to write: questions.csv, answers.csv.")],
    answers: Annotated[int, typer.Option(min=1, help="Answers to each question, with seeds of their own.")] = 1,
    most: Annotated[int, typer.Option(help="Questions of each domain, at most.")] = 1000,
    only: Annotated[str, typer.Option(help="Beginning of the settings that are measured.")] = "",
) -> None:
    """Shares of right answers to the held-out questions of the experts' domains; the expert is asked its own alone."""
    from ladle.recipes.config import load_recipe
    from ladle.recipes.domains.domains import is_right, questions
    from ladle.recipes.experts.route import needed
    from ladle.recipes.training.evaluate import write_csv

    recipe = load_recipe("demo")
    config = needed(recipe.routing_evaluation, "routing_evaluation")
    domains = list(needed(recipe.experts, "experts").samples)
    held_out = [q for domain in domains for q in questions(domain, "test", config.prompts, config.seed)[:most]]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, serving(family, Path(folder) / "log", "--dtype", "bfloat16") as url:
        texts = [question.task.prompt for question in held_out]
        for label in SETTINGS:
            if not label.startswith(only):
                continue
            mine = [i for i, question in enumerate(held_out) if question.domain == "math" or label.startswith("routed")]
            asked = [(label, index, number) for index in mine for number in range(answers)]
            own = asyncio.run(_answers(url, asked, texts, config.max_tokens))
            for row in own:
                question = held_out[row["question"]]
                row["domain"], row["right"] = question.domain, int(is_right(question, row["text"]))
            rows, table = rows + own, table + (entries := _shares(label, own))
            write_csv(rows, out / "answers.csv")
            write_csv(table, out / "questions.csv")
            for entry in entries:
                typer.echo("  ".join(f"{key} {value}" for key, value in entry.items()))


async def _answers(
    url: str, asked: Sequence[tuple[str, int, int]], texts: Sequence[str], max_tokens: int
) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(url, timeout=600, max_retries=8) as client:

        async def one(label: str, index: int, number: int) -> dict[str, Any]:
            steering, sampling = SETTINGS[label]
            options = {**PLAIN, **sampling, "max_tokens": max_tokens, "seed": 1000 * number + index}
            async with gate:
                reply = await client.chat(texts[index], steering=steering, **options)
            written = reply.usage.completion_tokens if reply.usage else 0
            return {"setting": label, "question": index, "number": number, "tokens": written,
                    "drawn": _drawn(reply.steering, written), "text": reply.text}  # fmt: skip

        return list(await asyncio.gather(*(one(*each) for each in asked)))


def _drawn(steering: Any, written: int) -> int:
    """Tokens that were drawn for an answer of ``written`` tokens."""
    search = None if steering is None else steering.search
    return written if search is None else sum(choice["tokens"] for choice in search["choices"])


def _shares(label: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a domain, and one of all; the questions are what is drawn again."""
    entries = []
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    for domain in (*domains, "all") if len(domains) > 1 else domains:
        own = [row for row in rows if domain in ("all", row["domain"])]
        groups: dict[int, list[int]] = {}
        for row in own:
            groups.setdefault(row["question"], []).append(row["right"])
        mean, low, high = bootstrap_mean(np.array(list(groups.values()), dtype=float), draws=2000, seed=0)
        entries.append(
            {
                "setting": label,
                "domain": domain,
                "answers": len(own),
                "right": f"{mean:.3f}",
                "low": f"{low:.3f}",
                "high": f"{high:.3f}",
                "tokens": f"{sum(row['tokens'] for row in own) / len(own):.1f}",
                "drawn": f"{sum(row['drawn'] for row in own) / len(own):.1f}",
            }
        )
    return entries


@app.command()
def figures(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the tables of a comparison, and the samples.")],
    scale: Annotated[
        Path, typer.Option(help="Folder of a sweep whose answers of the base rewards are measured in.")
    ] = Path("studies/control/test"),
) -> None:
    """Measures of a sweep in standard deviations of another sweep's base: one answer to each of few prompts can have no
    deviation at all, as the base's answers that are all cut at one length have none in ``concise``."""
    from ladle.recipes.sweeps.grid import BASE
    from ladle.recipes.sweeps.join import join, write_tables
    from ladle.recipes.sweeps.summary import RewardTable, standardised, summarise

    objectives, settings, samples = join([("", sweep)])
    _, _, others = join([("", scale)])
    base = [[sample.rewards[name] for name in objectives] for (key, _, _), sample in others.items() if key == BASE]
    table = RewardTable(settings, samples, objectives)
    table.z = standardised(table.raw, np.array(base, dtype=float))
    out.mkdir(parents=True, exist_ok=True)
    write_tables(summarise(table, 2000, 0), out)
    (out / "sweep.json").write_text((sweep / "sweep.json").read_text(encoding="utf-8"), encoding="utf-8")
    with gzip.GzipFile(out / "samples.csv.gz", "wb", mtime=0) as stream:
        stream.write((sweep / "samples.csv").read_bytes())


@app.command()
def cost(
    family: Annotated[str, typer.Argument(help="A family with explicit values, or its server's address.")],
    split: Annotated[str, typer.Option(help="Prompts of the shipped list that are asked.")] = "test",
    most: Annotated[int, typer.Option(help="How many of the prompts are asked.")] = 26,
) -> None:
    """Tokens that a search by explicit values draws for a token of an answer, at an even preference."""
    from ladle.recipes.prompt_list import load_prompts

    texts = [prompt.text for prompt in load_prompts("everyday", split)][:most]
    even = {"positive": 1.0, "simple": 1.0, "concise": 1.0}
    SETTINGS["searched"] = ({"method": "bone_soup", "preference": even, "search": EXPLICIT}, DRAWN)
    with tempfile.TemporaryDirectory() as folder, serving(family, Path(folder) / "log", "--dtype", "bfloat16") as url:
        rows = asyncio.run(_answers(url, [("searched", index, 0) for index in range(len(texts))], texts, 48))
    written, drawn = sum(row["tokens"] for row in rows), sum(row["drawn"] for row in rows)
    typer.echo(f"{len(rows)} answers of {written / len(rows):.1f} tokens; {drawn / written:.2f} drawn for each of them")


if __name__ == "__main__":
    app()
