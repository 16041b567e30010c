"""Makes a tiny model with the base's tokens, which `contrastive` contrasts the base with: an amateur.

`python -m ladle.recipes.training.amateur --config demo --out families/demo`
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ladle.merging.checkpoints.library_lock import loading
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.batched_sampling import sample
from ladle.recipes.config import AmateurConfig
from ladle.recipes.scoring import Encoded, answer_logprobs, output_logits, predictions
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.descent import descend
from ladle.recipes.training.family_manifest import AMATEUR, write_manifest
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import Workshop, fingerprint
from ladle.recipes.training.written_whole import written_whole

FIGURES = "amateur.csv"
_AT_ONCE = 16  # held-out answers that are read in one batch


@dataclasses.dataclass(frozen=True)
class Lesson:
    """An answer, and what the base expects at each of its tokens.

    Attributes:
        prompt: token ids, in the base's chat format.
        answer: token ids.
        ids: int32 [tokens, top], the most likely tokens.
        logprobs: float16 [tokens, top], the base's log-probabilities of these.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
    """How well a model predicts the base's own answers to prompts that the amateur was not trained on.

    Attributes:
        model: whose predictions these are.
        tokens: how many were predicted.
        loss, low, high: nats per token, and its 95 % interval over prompts.
    """

    model: str
    tokens: int
    loss: float
    low: float
    high: float

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


@torch.inference_mode()
def lessons(base: LoadedBase, pool: Sequence[Candidate], top: int) -> list[Lesson]:
    """What the base expects at every token of the pool's answers that were not cut short, answers in order.

    Args:
        base: read under the default system prompt, whatever an answer was sampled under.
        pool: candidates.
        top: tokens to keep at each position.
    """
    whole: dict[str, list[Candidate]] = {}
    for candidate in pool:
        if not candidate.origin.endswith(("cut", "short")):
            whole.setdefault(candidate.prompt, []).append(candidate)
    taught = []
    for prompt, candidates in track(whole.items(), "what the base expects"):
        ids = base.prompt_ids(prompt)
        logits, _ = answer_logprobs(base.model, ids, [candidate.tokens for candidate in candidates])
        best = logits.topk(top, dim=-1)
        logprobs = (best.values - logits.logsumexp(-1, keepdim=True)).half()
        for row, candidate in enumerate(candidates):
            n = len(candidate.tokens)
            taught.append(Lesson(tuple(ids), candidate.tokens, best.indices[row, :n].int(), logprobs[row, :n]))
    return taught


def new_amateur(base: LoadedBase, config: AmateurConfig) -> LlamaForCausalLM:
    """A small Llama whose embeddings, which are its head as well, are the base's in their `hidden` principal
    directions: tokens that the base takes for alike are alike from the beginning."""
    torch.manual_seed(config.seed)
    own = base.model.config.get_text_config()
    rope = getattr(own, "rope_parameters", None)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=own.vocab_size,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=own.max_position_embeddings,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": (rope or {}).get("rope_theta", 1e4)},
            tie_word_embeddings=True,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
    )
    embeddings = base.model.get_input_embeddings().weight.detach().double()
    scatter = embeddings.T @ embeddings
    directions = torch.linalg.eigh(scatter).eigenvectors[:, -config.hidden :]
    model.get_input_embeddings().weight.data = (embeddings @ directions).float()
    model.tie_weights()
    return model


def distillation_loss(logits: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """KL(base || amateur) in nats, mean over tokens, with all that is not in ``ids`` taken as one outcome.

    Args:
        logits: float32 [tokens, vocabulary], the amateur's.
        ids: int [tokens, top], the base's most likely tokens.
        logprobs: float [tokens, top], the base's log-probabilities of these.

    Returns:
        scalar.
    """
    theirs = logprobs.float()
    ours = logits.gather(-1, ids.long()) - logits.logsumexp(-1, keepdim=True)
    known = theirs.exp()
    floor = torch.finfo(torch.float32).eps
    rest, own_rest = (1 - known.sum(-1)).clamp(min=floor), (1 - ours.exp().sum(-1)).clamp(min=floor)
    divergence = (known * (theirs - ours)).sum(-1) + rest * (rest.log() - own_rest.log())
    return divergence.mean()


def train_amateur(base: LoadedBase, taught: Sequence[Lesson], config: AmateurConfig, folder: Path) -> float:
    """Distils the base into a tiny model and writes it as a checkpoint in float16, without a tokenizer: the base's is
    its own.

    Args:
        base: gives shape and embeddings.
        taught: what it learns.
        config: the recipe's [amateur].
        folder: there whole or not at all.

    Returns:
        The divergence from the base, nats per token, over the last quarter of the steps.
    """
    model = new_amateur(base, config).to(base.model.device).train()
    draw = np.random.default_rng(config.seed)
    rows = []
    for _ in range(config.epochs):
        order = draw.permutation(len(taught))
        rows += [[taught[i] for i in order[n : n + config.turns]] for n in range(0, len(order), config.turns)]
    batches = [[rows[n : n + config.batch]] for n in range(0, len(rows), config.batch)]

    def backward(batch: list[list[Lesson]], share: float) -> tuple[float]:
        logits, ids, logprobs = _read(model, batch)
        loss = distillation_loss(logits, ids, logprobs)
        (loss * share).backward()
        return (float(loss.detach()),)

    rates = [(config.learning_rate, list(model.parameters()))]
    figures = descend(AMATEUR, rates, batches, backward, warmup=config.warmup, max_gradient=config.max_gradient)
    with written_whole(folder) as aside:
        model.half().save_pretrained(str(aside), safe_serialization=True)
        (aside / "generation_config.json").unlink(missing_ok=True)  # the base's holds
    return float(figures[0])


def _read(model: PreTrainedModel, batch: Sequence[Sequence[Lesson]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The model's logits at the tokens of all answers of rows of lessons, and what the base expects there."""
    texts, places = [], []
    for row, turns in enumerate(batch):
        text: list[int] = []
        for turn in turns:
            text += turn.prompt
            places += [(row, len(text) - 1 + n) for n in range(len(turn.answer))]  # where each token is predicted
            text += turn.answer
        texts.append(text)
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long, device=model.device)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    hidden = model.base_model(ids, use_cache=False).last_hidden_state  # padding comes last and needs no mask
    at = torch.tensor(places, device=model.device)
    logits = output_logits(model, hidden[at[:, 0], at[:, 1]])
    flat = [turn for turns in batch for turn in turns]
    expected = torch.cat([turn.ids for turn in flat]), torch.cat([turn.logprobs for turn in flat])
    return logits, expected[0].to(logits.device), expected[1].to(logits.device)


def held_out_answers(workshop: Workshop, count: int, seed: int) -> list[list[Encoded]]:
    """`count` answers of the base to each validation prompt, drawn as the pool is."""
    base, config = workshop.base, workshop.recipe.pool
    asked = [base.prompt_ids(prompt.text) for prompt in workshop.prompts("validation") for _ in range(count)]
    answers: list[list[int]] = []
    for start in range(0, len(asked), config.batch_rows):
        answers += sample(
            base.model, asked[start : start + config.batch_rows], eos=base.eos, max_tokens=config.max_tokens,
            temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, seed=seed + start,
        )  # fmt: skip
    items = [Encoded(tuple(ids), tuple(answer)) for ids, answer in zip(asked, answers, strict=True)]
    return [items[start : start + count] for start in range(0, len(items), count)]


@torch.inference_mode()
def fit(name: str, model: PreTrainedModel, held: Sequence[Sequence[Encoded]], draws: int, seed: int) -> HeldOutLoss:
    """Mean loss of a model over answers, and its interval by drawing prompts anew (percentile bootstrap)."""
    losses, lengths = np.zeros(len(held)), np.zeros(len(held))
    flat = [(number, item) for number, items in enumerate(held) for item in items]
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        read = predictions(model, [item for _, item in part])
        owners = np.array([number for number, _ in part])[read.rows.numpy()]
        np.add.at(losses, owners, -read.logprobs().double().cpu().numpy())
        np.add.at(lengths, owners, 1.0)
    drawn = np.random.default_rng(seed).integers(len(held), size=(draws, len(held)))
    means = losses[drawn].sum(1) / lengths[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return HeldOutLoss(name, int(lengths.sum()), float(losses.sum() / lengths.sum()), float(low), float(high))


def make_amateur(workshop: Workshop, out: Path) -> list[HeldOutLoss]:
    """Trains the recipe's amateur where it is not finished, copies it to `out/amateur`, measures it, and writes
    `out/amateur.csv` and `out/family.toml`.

    Raises:
        ValueError: the recipe has no [amateur].
    """
    recipe = workshop.recipe
    config = recipe.amateur
    if config is None:
        raise ValueError("[amateur]: the recipe has no such table; an amateur needs it")
    folder = workshop.folder / f"amateur-{fingerprint(workshop.pool_key, config)}"
    if not folder.is_dir():
        loss = train_amateur(workshop.base, lessons(workshop.base, workshop.pool(), config.top), config, folder)
        print(f"amateur: {loss:.3f} nats from the base")
    shutil.copytree(folder, out / AMATEUR, dirs_exist_ok=True)
    with loading(f"reading {folder}"):
        amateur = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    amateur = amateur.to(workshop.base.model.device).eval()
    held = held_out_answers(workshop, config.held_out, config.seed)
    models = {"base": workshop.base.model, "amateur": amateur}
    fits = [fit(name, model, held, config.bootstrap, config.seed) for name, model in models.items()]
    with (out / FIGURES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "prompts", "tokens", "loss", "low", "high", "perplexity"])
        for one in fits:
            figures = (f"{number:.3f}" for number in (one.loss, one.low, one.high))
            writer.writerow([one.model, len(held), one.tokens, *figures, f"{one.perplexity:.2f}"])
    write_manifest(recipe, out)
    return fits


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    description = "Distil a tiny model from the base's own answers, for contrastive decoding."
    parser = recipe_parser("training.amateur", description, out=": amateur/ and family.toml")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with one, the same comes out again")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    started = time.monotonic()
    arguments, recipe = recipe_arguments(parser, argv, "amateur")
    fits = make_amateur(Workshop.open(recipe, arguments.work, threads=arguments.threads), arguments.out)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in fits]))
        return 0
    for one in fits:
        print(f"{one.model}: perplexity {one.perplexity:.1f} of {one.tokens} held-out tokens")
    print(f"{arguments.out / AMATEUR} in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
