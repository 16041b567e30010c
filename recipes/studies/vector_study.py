"""Does a steering vector control? One made of answers to some prompts, measured on others at several coefficients.

python -m ladle.recipes.studies.vector_study pairs studies/control/validation --reward positive --out pairs.jsonl
ladle vector FAMILY NAME --pairs pairs.jsonl
python -m ladle.recipes.studies.vector_study measure FAMILY NAME --coefficients=-1,0,1 --out FOLDER
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ladle.clients import AsyncClient
from ladle.recipes.sweeps.server import ask, serving
from ladle.recipes.text_metrics import is_degenerate

app = typer.Typer(no_args_is_help=True, add_completion=False)
SAMPLING = {"max_tokens": 48, "temperature": 0.8, "top_p": 0.95}
_AT_ONCE = 16


@app.command()
def pairs(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep whose samples have rewards (ladle sweep).")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    reward: Annotated[str, typer.Option(help="The reward that tells the sides apart.")] = "positive",
) -> None:
    """Write, for every prompt, the answers with the greatest and the least reward, among those that the base finds no
    stranger than half of all answers."""
    asked = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    with gzip.open(sweep / "samples.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["base_logprob"] and row["text"].strip()]
    surprise = [-float(row["base_logprob"]) / int(row["tokens"]) for row in rows]
    bound = sorted(surprise)[len(rows) // 2]
    plain = [row for row, nats in zip(rows, surprise, strict=True) if nats <= bound]
    with out.open("w", encoding="utf-8") as stream:
        for index, prompt in enumerate(asked["prompts"]):
            own = sorted((row for row in plain if int(row["prompt"]) == index), key=lambda row: _reward(row, reward))
            if len(own) > 1 and _reward(own[0], reward) < _reward(own[-1], reward):
                entry = {"prompt": prompt, "positive": own[-1]["text"], "negative": own[0]["text"]}
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


@app.command()
def measure(
    family: Annotated[str, typer.Argument(help="A family, or the address of its server.")],
    name: Annotated[str, typer.Argument(help="Name of the steering vector.")],
    out: Annotated[Path, typer.Option(help="Folder to write: samples.csv and coefficients.csv.")],
    coefficients: Annotated[str, typer.Option(help="Coefficients to ask for, with commas between them.")],
    split: Annotated[Path, typer.Option(help="Folder of a sweep whose prompts are asked.")] = Path(
        "studies/control/test"
    ),
    answers: Annotated[int, typer.Option(min=1, help="Answers to each prompt, with seeds of their own.")] = 1,
    most: Annotated[int, typer.Option(help="How many of the prompts are asked.")] = 1000,
) -> None:
    """Rewards of answers, and how perplexing the plain base finds them, at each coefficient; the same seeds at all."""
    from ladle.recipes.rewards import Positive
    from ladle.recipes.training.evaluate import write_csv

    prompts = json.loads((split / "sweep.json").read_text(encoding="utf-8"))["prompts"][:most]
    values = [float(value) for value in coefficients.split(",")]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(family, Path(folder) / "log", "--dtype", "bfloat16") as url:
        rows = asyncio.run(_samples(url, name, values, prompts, answers))
    reward = Positive()
    for row in rows:
        row["reward_positive"] = round(reward(prompts[row["prompt"]], row["text"]), 4)
    write_csv(rows, out / "samples.csv")
    table = [_figures(value, [row for row in rows if row["coefficient"] == value]) for value in values]
    base = next((row["perplexity"] for row in table if row["coefficient"] == 0.0), None)
    for entry in table:
        entry["over_base"] = None if base is None else round(entry["perplexity"] / base, 3)
    write_csv(table, out / "coefficients.csv")
    tau = kendall([row["coefficient"] for row in table], [row["reward_positive"] for row in table])
    for entry in table:
        typer.echo("  ".join(f"{key} {value}" for key, value in entry.items()))
    typer.echo(f"Kendall's tau {tau:.3f}")


async def _samples(
    url: str, name: str, values: Sequence[float], prompts: Sequence[str], answers: int
) -> list[dict[str, Any]]:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(url, timeout=600) as client:

        async def one(value: float, index: int, number: int) -> dict[str, Any]:
            async with gate:
                steering = {"method": "rewarded_soup", "coefficients": {name: value}}
                reply = await ask(client, prompts[index], steering, index * answers + number, True, **SAMPLING)
            return {"coefficient": value, "prompt": index, "number": number, "tokens": reply.tokens,
                    "base_logprob": reply.base_logprob, "text": reply.text}  # fmt: skip

        wanted = itertools.product(values, range(len(prompts)), range(answers))
        return list(await asyncio.gather(*(one(*each) for each in wanted)))


def _figures(value: float, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the answers at one coefficient; perplexity over all of their tokens."""
    tokens = sum(row["tokens"] for row in rows)
    nats = -sum(row["base_logprob"] for row in rows) / tokens
    rewards = [row["reward_positive"] for row in rows]
    mean = sum(rewards) / len(rows)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(1, len(rows) - 1))
    broken = sum(is_degenerate(row["text"].lower().split()) for row in rows)
    return {
        "coefficient": value,
        "answers": len(rows),
        "reward_positive": round(mean, 4),
        "standard_error": round(deviation / math.sqrt(len(rows)), 4),
        "perplexity": round(math.exp(nats), 4),
        "degenerate": round(broken / len(rows), 4),
        "mean_tokens": round(tokens / len(rows), 2),
    }


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-a of two sequences without ties in the first."""
    pairs = list(itertools.combinations(zip(one, other, strict=True), 2))
    signs = [math.copysign(1, (a[0] - b[0]) * (a[1] - b[1])) if a[1] != b[1] else 0.0 for a, b in pairs]
    return sum(signs) / len(pairs)


def _reward(row: dict[str, str], name: str) -> float:
    return float(row[f"reward_{name}"])


if __name__ == "__main__":
    app()
