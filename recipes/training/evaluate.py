"""Judging a family: sample every preference on held-out prompts, look at rewards, degeneration and likelihood under
the base."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from ladle.merging.members.adapter import LowRankMember
from ladle.merging.preferences.coefficients import bone_soup, rewarded_soup
from ladle.merging.preferences.preference import Preference
from ladle.merging.preferences.simplex import grid
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.batched_sampling import sample
from ladle.recipes.config import EvaluationConfig, Recipe
from ladle.recipes.prompt_list import ListedPrompt
from ladle.recipes.rewards import Reward, scores
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.soup import merged
from ladle.recipes.sweeps.control_measures import hypervolume, kendall
from ladle.recipes.text_metrics import bootstrap_mean, is_degenerate
from ladle.recipes.training.pairs import Scale


@dataclass(frozen=True)
class Mixture:
    """One way of mixing members. `preference` is empty for the base and for single members.

    `coefficients` are merged into the base's weights.
    """

    method: str
    preference: tuple[float, ...]
    coefficients: dict[str, float]

    @property
    def label(self) -> str:
        weights = ", ".join(f"{weight:g}" for weight in self.preference)
        return f"{self.method} ({weights})" if weights else self.method


@dataclass(frozen=True)
class SampledAnswer:
    """One sampled text with what was measured on it; `logprob` is its total under the plain base, nats."""

    prompt: str
    text: str
    tokens: int
    degenerate: bool
    logprob: float
    rewards: tuple[float, ...]


# Token ids of `EvaluationConfig.samples` answers to each prompt under one setting.
Sampler = Callable[[Mixture, Sequence[ListedPrompt]], list[list[list[int]]]]


def grid_settings(recipe: Recipe, points: int) -> list[Mixture]:
    """The base, then Bone Soup and Rewarded Soup over a grid of preferences with `points` weights for each
    objective."""
    names = recipe.objectives
    settings = [Mixture("base", (), {})]
    for method in ("bone_soup", "rewarded_soup"):
        for point in grid(len(names), points - 1):
            preference = Preference.of(dict(zip(names, point, strict=True)), names)
            if method == "bone_soup":
                backbones = [f"bone-{name}" for name in names]
                mix = bone_soup(preference, recipe.matrix(), backbones, recipe.soup.extrapolation)
            else:
                mix = rewarded_soup(preference, {name: f"policy-{name}" for name in names})
            weights = tuple(float(weight) for weight in preference.vector())
            settings.append(Mixture(method, weights, dict(zip(mix.members, mix.values, strict=True))))
    return settings


def merging_sampler(
    base: LoadedBase, members: Mapping[str, LowRankMember], config: EvaluationConfig, max_tokens: int
) -> Sampler:
    """Samples from the base with a setting's coefficients merged into its weights, with the same seeds for all
    settings."""
    per_batch = max(1, config.batch_rows // config.samples)

    @torch.inference_mode()
    def answers(setting: Mixture, prompts: Sequence[ListedPrompt]) -> list[list[list[int]]]:
        results = []
        with merged(base, members, setting.coefficients):
            for number, start in enumerate(range(0, len(prompts), per_batch)):
                chunk = prompts[start : start + per_batch]
                outputs = sample(
                    base.model,
                    [base.prompt_ids(prompt.text) for prompt in chunk for _ in range(config.samples)],
                    eos=base.eos,
                    max_tokens=max_tokens,
                    temperature=config.temperature,
                    top_k=config.top_k,
                    top_p=config.top_p,
                    seed=config.seed + number,
                )
                results += [outputs[i * config.samples : (i + 1) * config.samples] for i in range(len(chunk))]
        return results

    return answers


def evaluate(
    base: LoadedBase,
    sampler: Sampler,
    settings: Sequence[Mixture],
    prompts: Sequence[ListedPrompt],
    rewards: Sequence[Reward],
    path: Path | None = None,
) -> dict[str, list[SampledAnswer]]:
    """Samples each setting on each prompt and judges the answers.

    Args:
        base: judges how likely the answers are.
        sampler: gives the answers' tokens.
        path: a .jsonl file that receives every setting as soon as it is done, one per line; settings already in it are
            not sampled again.

    Returns:
        answers by `Setting.label`, prompts in order, as many a prompt as the sampler gives.
    """
    stored = _stored(path) if path is not None else {}
    done: dict[str, list[SampledAnswer]] = {}
    with Progress() as progress:
        task = progress.add_task("evaluation", total=len(settings))
        for setting in settings:
            progress.update(task, description=setting.label)
            key = _key(setting.label, setting.coefficients)
            if key not in stored:
                outputs = zip(prompts, sampler(setting, prompts), strict=True)
                stored[key] = [a for prompt, tokens in outputs for a in _judge(base, prompt.text, tokens, rewards)]
                if path is not None:
                    _store(path, setting, stored[key])
            done[setting.label] = stored[key]
            progress.advance(task)
    return done


def _store(path: Path, setting: Mixture, answers: Sequence[SampledAnswer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "label": setting.label,
        "coefficients": setting.coefficients,
        "answers": [asdict(answer) for answer in answers],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _key(label: str, coefficients: Mapping[str, float]) -> tuple[str, str]:
    """What an answer depends on: a preference means other weights once beta or an extrapolation changed."""
    return label, json.dumps(coefficients)


def _stored(path: Path) -> dict[tuple[str, str], list[SampledAnswer]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        _key(row["label"], row["coefficients"]): [
            SampledAnswer(**{**answer, "rewards": tuple(answer["rewards"])}) for answer in row["answers"]
        ]
        for row in rows
    }


@torch.inference_mode()
def _judge(
    base: LoadedBase, prompt: str, outputs: Sequence[list[int]], rewards: Sequence[Reward]
) -> list[SampledAnswer]:
    _, logprobs = answer_logprobs(base.model, base.prompt_ids(prompt), outputs)
    texts = [base.text(tokens) for tokens in outputs]
    rated = zip(*(scores(reward, [prompt] * len(texts), texts) for reward in rewards), strict=True)
    answers = []
    for tokens, text, row, logprob in zip(outputs, texts, rated, logprobs.sum(-1).tolist(), strict=True):
        body = [token for token in tokens if token != base.eos]
        answers.append(
            SampledAnswer(
                prompt,
                text,
                len(tokens),
                is_degenerate(body),
                logprob,
                row,
            )
        )
    return answers


def summarise(
    settings: Sequence[Mixture],
    answers: Mapping[str, Sequence[SampledAnswer]],
    objectives: Sequence[str],
    scale: Scale,
    config: EvaluationConfig,
) -> list[dict[str, object]]:
    """One row per setting: the mean reward per objective with its 95 % bootstrap interval over prompts, mean tokens,
    degenerate share,
    perplexity under the base, and mean preference-weighted standardised reward (mu . z)."""
    rows = []
    for setting in settings:
        texts = answers[setting.label]
        shape = (-1, config.samples)
        row: dict[str, object] = {
            "method": setting.method,
            "coefficients": " ".join(f"{k}={v:.4g}" for k, v in setting.coefficients.items()),
        }
        for i, objective in enumerate(objectives):
            row[f"mu_{objective}"] = f"{setting.preference[i]:g}" if setting.preference else ""
        for i, objective in enumerate(objectives):
            values = np.array([text.rewards[i] for text in texts]).reshape(shape)
            mean, low, high = bootstrap_mean(values, draws=config.bootstrap, seed=config.seed)
            row |= {objective: round(mean, 3), f"{objective}_low": round(low, 3), f"{objective}_high": round(high, 3)}
        row["tokens"] = round(float(np.mean([text.tokens for text in texts])), 1)
        row["degenerate"] = round(float(np.mean([text.degenerate for text in texts])), 4)
        row["base_perplexity"] = round(
            float(np.exp(-sum(text.logprob for text in texts) / sum(text.tokens for text in texts))), 2
        )
        z = scale.z([text.rewards for text in texts])
        row["mu_z"] = round(float((z @ np.array(setting.preference)).mean()), 3) if setting.preference else ""
        rows.append(row)
    return rows


def front(
    method: str,
    settings: Sequence[Mixture],
    answers: Mapping[str, Sequence[SampledAnswer]],
    scale: Scale,
    config: EvaluationConfig,
    reference: Sequence[float],
) -> dict[str, float]:
    """Hypervolume of a method's mean standardised rewards above `reference` with its 95 % interval (prompts
    resampled, the same for every
    method), and Kendall's tau between each weight and its reward ("tau_0", "tau_1")."""
    chosen = [setting for setting in settings if setting.method == method]
    z = np.stack([scale.z([text.rewards for text in answers[setting.label]]) for setting in chosen])
    means = z.reshape(len(chosen), -1, config.samples, z.shape[-1]).mean(axis=2)  # [settings, prompts, objectives]
    random = np.random.default_rng(config.seed)
    draws = [
        hypervolume(means[:, random.integers(means.shape[1], size=means.shape[1])].mean(axis=1), reference)
        for _ in range(config.bootstrap)
    ]
    points = means.mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    result = {"hypervolume": hypervolume(points, reference), "low": float(low), "high": float(high)}
    for i in range(z.shape[-1]):
        result[f"tau_{i}"] = kendall(np.array([setting.preference[i] for setting in chosen]), points[:, i])
    return result


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes ``rows``, which have the same keys, one line each; their folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
