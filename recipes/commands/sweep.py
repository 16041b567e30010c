"""``ladle sweep``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    target: Annotated[str, typer.Argument(help="A built-in family, a family's folder, or the URL of a server.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="A method as METHOD or METHOD:KEY=VALUE,..., such as mage:value=both, or oracles; may be repeated.",
            show_default="bone_soup",
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(min=1, help="Number of steps from 0 to 1 in every weight: the grid of preferences.")
    ] = 4,
    dirichlet: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of preferences to draw at random, the corners among them, instead of the grid."
        ),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            help="Prompts: a list that is shipped, a .jsonl with split and prompt, or a text file with one per line."
        ),
    ] = "everyday",
    split: Annotated[str, typer.Option(help="Part of a list with splits: train, validation or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first prompts only.")] = None,
    answers: Annotated[int, typer.Option(min=1, help="Number of answers per prompt and preference.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens in an answer.")] = 48,
    temperature: Annotated[float, typer.Option(min=0)] = 0.8,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the answers and of the intervals.")] = 0,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            "-r",
            help="What scores an objective: a sequence classifier as OBJECTIVE=FOLDER[#LABEL], or a function as "
            "OBJECTIVE=FILE.py:FUNCTION; may be repeated.",
        ),
    ] = None,
    perplexity_answers: Annotated[
        int,
        typer.Option(
            min=0, help="Number of answers per prompt that the plain base judges as well; each costs one more lane."
        ),
    ] = 1,
    at_once: Annotated[int, typer.Option(min=1, help="Number of requests that run at once.")] = 16,
    draws: Annotated[int, typer.Option(min=100, help="Number of resamples for the intervals.")] = 2000,
    out: Annotated[
        Path, typer.Option(help="Folder to write the results to; a sweep that was begun there goes on.")
    ] = Path("sweep"),
    api_key: Annotated[
        str | None, typer.Option(envvar="LADLE_API_KEY", help="The key, where the server asks for one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Measure how rewards follow preferences: samples, figures with intervals, plots.

    Example: ladle sweep demo -m bone_soup -m mage:value=implicit --limit 20 --out sweep
    """
    from ladle.clients import Client
    from ladle.clients.errors import LadleError
    from ladle.merging.preferences.simplex import dirichlet as random_points
    from ladle.merging.preferences.simplex import grid
    from ladle.recipes.sweeps.grid import settings_of
    from ladle.recipes.sweeps.inputs import read_prompts, rewards_of
    from ladle.recipes.sweeps.server import serving
    from ladle.recipes.sweeps.store import SampleStore
    from ladle.recipes.sweeps.sweep import TokenCounter, collect, conclude
    from ladle.recipes.sweeps.sweep_report import progress_bar, show

    try:
        asked = read_prompts(prompts, split)[:limit]
        out.mkdir(parents=True, exist_ok=True)
        with serving(target, out / "server.log") as url, Client(url, api_key=api_key) as client:
            family = client.families()[0]
            objectives = family.objectives
            if not objectives:
                raise ValueError(f"family: {family.name!r} is not allowed; allowed: a family with objectives")
            preferences = (
                random_points(len(objectives), dirichlet, seed) if dirichlet else grid(len(objectives), points)
            )
            oracles = {
                member.name: member.rewards for member in family.members if member.kind == "policy" and member.rewards
            }
            settings = settings_of(methods or ["bone_soup"], preferences, oracles)
            merges = {}
            for setting in settings:
                # What the family cannot do is said before anything is sampled.
                said = client.generate("a", model=family.name, steering=setting.request(objectives), max_tokens=1)
                merges[setting.key] = said.steering.coefficients if said.steering else {}
            counter = TokenCounter()
            scorers = rewards_of(objectives, rewards or [], counter)
            sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
            facts = {
                "family": family.name, "objectives": objectives, "settings": [setting.key for setting in settings],
                "prompts": asked, "answers": answers, "seed": seed, "sampling": sampling,
                "perplexity_answers": perplexity_answers, "rewards": sorted(rewards or []), "coefficients": merges,
            }  # fmt: skip
            store = SampleStore(out, facts, objectives)
            with progress_bar() as progress:
                asyncio.run(
                    collect(
                        url, family.name, objectives, settings, asked, answers, seed, sampling, scorers, counter, store,
                        judged=perplexity_answers, at_once=at_once, api_key=api_key, progress=progress,
                    )
                )  # fmt: skip
        summary = conclude(store, settings, objectives, draws, seed)
    except (ValueError, OSError, RuntimeError, LadleError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    show(summary, out, as_json)
