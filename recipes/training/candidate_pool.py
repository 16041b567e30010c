"""The pool of candidate answers a family is trained on: sampled once from the base, scored under it, kept as JSON
lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.batched_sampling import sample
from ladle.recipes.config import PoolConfig
from ladle.recipes.prompt_list import ListedPrompt
from ladle.recipes.rewards import Reward, ends_sentence, scores
from ladle.recipes.scoring import answer_logprobs

PLAIN = "plain"


@dataclass(frozen=True)
class Candidate:
    """One possible answer to `prompt` under the default system prompt.

    `tokens` ends with the end-of-turn token unless sampling was stopped by length; `logprob` is the base's total in
    nats; `origin` is the style it was sampled under, with "cut" or "short" appended for shortened variants.
    """

    prompt: str
    origin: str
    tokens: tuple[int, ...]
    text: str
    logprob: float
    rewards: tuple[float, ...]

    @property
    def token_logprob(self) -> float:
        """Mean log-probability of a token under the base, nats."""
        return self.logprob / len(self.tokens)


def _requests(prompts: Sequence[ListedPrompt], config: PoolConfig) -> list[tuple[int, str, str | None]]:
    styles: list[tuple[str, str | None, int]] = [(PLAIN, None, config.plain_samples)]
    styles += [(name, system, config.style_samples) for name, system in config.styles.items()]
    return [(i, name, system) for i in range(len(prompts)) for name, system, count in styles for _ in range(count)]


def _cuts(
    base: LoadedBase, tokens: Sequence[int], config: PoolConfig, draw: np.random.Generator, short: bool
) -> Iterator[tuple[str, int]]:
    """Lengths at which an answer may be cut: at most two where a sentence ends; if asked for, one far too short."""
    low, high = config.cut_lengths
    ends = [n for n in range(low, min(high, len(tokens) - 1) + 1) if ends_sentence(base.text(list(tokens[:n])))]
    for n in sorted(draw.permutation(ends)[:2].tolist()):
        yield "cut", int(n)
    if short and len(tokens) > config.short_lengths[1] + 1:
        yield "short", int(draw.integers(config.short_lengths[0], config.short_lengths[1] + 1))


@torch.inference_mode()
def _candidates(
    base: LoadedBase,
    prompt: ListedPrompt,
    index: int,
    samples: Sequence[tuple[str, list[int]]],
    config: PoolConfig,
) -> Iterator[Candidate]:
    """Scores the samples of one prompt under the default system prompt and adds their shortened variants, without
    rewards."""
    draw = np.random.default_rng((config.seed, index))
    logits, logprobs = answer_logprobs(base.model, base.prompt_ids(prompt.text), [tokens for _, tokens in samples])
    ending = torch.log_softmax(logits, -1)[..., base.eos]
    totals = logprobs.double().cumsum(-1)
    shorten = int(draw.integers(len(samples)))
    for row, (origin, tokens) in enumerate(samples):
        variants = [(origin, tokens, float(totals[row, len(tokens) - 1]))]
        for kind, n in _cuts(base, tokens, config, draw, short=row == shorten):
            total = float(totals[row, n - 1]) + float(ending[row, n])
            variants.append((f"{origin} {kind}", [*tokens[:n], base.eos], total))
        for name, ids, total in variants:
            text = base.text(ids)
            if text:
                yield Candidate(prompt.text, name, tuple(ids), text, total, ())


def rewarded(candidates: Sequence[Candidate], rewards: Sequence[Reward]) -> list[Candidate]:
    """The candidates with their rewards, in order."""
    prompts = [candidate.prompt for candidate in candidates]
    texts = [candidate.text for candidate in candidates]
    columns = [scores(reward, prompts, texts) for reward in rewards]
    return [
        replace(candidate, rewards=row) for candidate, row in zip(candidates, zip(*columns, strict=True), strict=True)
    ]


def _prompts_a_batch(prompts: Sequence[ListedPrompt], config: PoolConfig) -> int:
    return max(1, config.batch_rows // len(_requests(prompts[:1], config)))


def sample_batch(
    base: LoadedBase, prompts: Sequence[ListedPrompt], number: int, rewards: Sequence[Reward], config: PoolConfig
) -> list[Candidate]:
    """The candidates of batch ``number`` of the pool over ``prompts``; they depend on nothing but the arguments."""
    step = _prompts_a_batch(prompts, config)
    chunk = prompts[number * step : (number + 1) * step]
    requests = _requests(chunk, config)
    outputs = sample(
        base.model,
        [base.prompt_ids(chunk[i].text, system) for i, _, system in requests],
        eos=base.eos,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed + number,
    )
    batch: list[Candidate] = []
    for i, prompt in enumerate(chunk):
        samples = [(name, tokens) for (j, name, _), tokens in zip(requests, outputs, strict=True) if j == i]
        batch += _candidates(base, prompt, number * step + i, samples, config)
    return rewarded(batch, rewards)


def build_pool(
    base: LoadedBase, prompts: Sequence[ListedPrompt], rewards: Sequence[Reward], config: PoolConfig, path: Path
) -> list[Candidate]:
    """Samples the pool in batches of whole prompts and appends each batch to `path`; a broken-off run goes on where
    it stopped.

    Args:
        base: the model that is sampled and that scores.
        prompts: the training prompts.
        rewards: one per objective, in the family's order.
        config: counts, sampling settings and the seed; batch i draws from seed + i, so resuming does not change the
            data.
        path: the .jsonl file, one batch a line.

    Returns:
        every candidate, prompts in order.
    """
    starts = range(0, len(prompts), _prompts_a_batch(prompts, config))
    batches = read_batches(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for number, _ in enumerate(track(starts, "pool", disable=len(batches) >= len(starts))):
            if number < len(batches):
                continue
            batch = sample_batch(base, prompts, number, rewards, config)
            file.write(json.dumps([asdict(candidate) for candidate in batch]) + "\n")
            file.flush()
            batches.append(batch)
    # Scored again even when read back: rewards are cheap, and a changed reward must not leave old scores behind.
    return rewarded([candidate for batch in batches for candidate in batch], rewards)


def read_batches(path: Path) -> list[list[Candidate]]:
    """The complete batches in a pool file; a last line that a killed run left half written is cut off the file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return [
        [
            Candidate(**{**row, "tokens": tuple(row["tokens"]), "rewards": tuple(row["rewards"])})
            for row in json.loads(line)
        ]
        for line in whole.decode("utf-8").splitlines()
    ]
