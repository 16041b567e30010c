"""Trains the deferral logit of a finished router, with which ``co_llm`` decides token by token who writes.

`python -m ladle.recipes.experts.deferral --config demo --out families/demo`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ladle.merging.members.router_head import ROUTER_HEAD
from ladle.recipes.base_model import LoadedBase, load_base
from ladle.recipes.domains.domains import DomainQuestion, questions
from ladle.recipes.experts.expert import encode
from ladle.recipes.experts.expert_views import ViewedAnswer, seen_by
from ladle.recipes.experts.route import RouteWorkshop, needed
from ladle.recipes.experts.router_training import load_trained_head, routed_logprobs
from ladle.recipes.routing_config import DeferralConfig
from ladle.recipes.scoring import predictions
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import fingerprint
from ladle.recipes.training.value import hidden_size
from ladle.recipes.training.written_whole import written_whole

ROUTER = "router"


@dataclasses.dataclass(frozen=True)
class Choices:
    """What deferring would have done at every token of right answers.

    Attributes:
        states: float32 [tokens, hidden], the router's last hidden states that predict each token.
        own: float32 [tokens], the router's log-probabilities of the tokens, nats.
        expert: float32 [tokens], those of the expert that its head scores best.
    """

    states: torch.Tensor
    own: torch.Tensor
    expert: torch.Tensor


def deferral_loss(logits: torch.Tensor, own: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Mean of -log(sigmoid(d) p_expert + (1 - sigmoid(d)) p_own), nats: the marginal likelihood of Co-LLM (arXiv
    2403.03870, equation 2), in which who writes a token is latent.

    Args:
        logits: float [tokens], d.
        own, expert: float [tokens], log-probabilities of the token under the router and under its expert.
    """
    defers = torch.nn.functional.logsigmoid(logits) + expert
    keeps = torch.nn.functional.logsigmoid(-logits) + own
    return -torch.logaddexp(defers, keeps).mean()


def fit_deferral(choices: Choices, config: DeferralConfig) -> tuple[torch.Tensor, float]:
    """The weights [hidden] and the bias of d. The paper trains the base with it; here the router stays frozen, so that
    the other methods keep theirs (our reduction). Deterministic: it starts at zero and sees all tokens in every step.
    """
    weight = torch.zeros(choices.states.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    # Hidden states are large in a few dimensions; what is fitted is a function of standardised ones.
    mean, spread = choices.states.mean(0), choices.states.std(0).clamp(min=1e-6)
    inputs = (choices.states - mean) / spread
    descent = torch.optim.Adam([weight, bias], lr=config.learning_rate)
    for _ in range(config.steps):
        descent.zero_grad()
        loss = deferral_loss(inputs @ weight + bias, choices.own, choices.expert)
        (loss + config.decay * weight.square().sum()).backward()
        descent.step()
    with torch.no_grad():
        scaled = weight / spread
        return scaled, float(bias - scaled @ mean)


@torch.inference_mode()
def choices_of(base: LoadedBase, router: Path, samples: Sequence[ViewedAnswer], batch: int) -> Choices:
    """Reads right answers with the router.

    Args:
        router: its PEFT folder, with the head that chooses experts.
        samples: answers with the experts' view of them, in the order of the head's rows.
        batch: answers a forward pass.
    """
    head = load_trained_head(router, hidden_size(base), samples[0].logprobs.shape[1])
    parts = []
    with merged(base, load_members(base, {ROUTER: router}), {ROUTER: 1.0}):
        for start in range(0, len(samples), batch):
            chunk = samples[start : start + batch]
            predicted = predictions(base.model, [sample.item for sample in chunk])
            logprobs = torch.cat([sample.logprobs for sample in chunk])
            expert = routed_logprobs(head(predicted.states), logprobs)
            parts.append((predicted.states, predicted.logprobs(), expert))
    states, own, expert = (torch.cat(column) for column in zip(*parts, strict=True))
    return Choices(states, own, expert)


def train_deferral(workshop: RouteWorkshop, family: Path, config: DeferralConfig) -> dict[str, float]:
    """Adds ``defer`` and ``defer_bias`` to the head of the family's router.

    Args:
        workshop: the recipe that made the family.
        family: its folder; experts and router are read from it.

    Returns:
        "deferred", the share of the tokens at which d > 0, and "loss", "alone": nats a token with deferring and of the
        router alone.
    """
    domains = list(workshop.experts.samples)
    drawn: list[DomainQuestion] = []
    for domain in domains:
        # Those behind what the router was trained on.
        first = workshop.router.samples + workshop.router.pairs
        drawn += questions(domain, "train", first + config.samples, workshop.experts.seed)[first:]
    folders = {f"expert-{domain}": family / "adapters" / f"expert-{domain}" for domain in domains}
    base, router = workshop.base, family / "adapters" / ROUTER
    items = [encode(base, question) for question in drawn]
    key = fingerprint([dataclasses.asdict(item) for item in items])
    files = {name: workshop.folder / f"defer-{name}-{key}.jsonl" for name in folders}
    samples = seen_by(base, load_members(base, folders), items, workshop.router.batch, files)
    choices = choices_of(base, router, samples, workshop.router.batch)
    weight, bias = fit_deferral(choices, config)
    tensors = load_file(str(router / ROUTER_HEAD))
    tensors |= {"defer": weight.contiguous(), "defer_bias": torch.tensor([bias])}
    with written_whole(router / ROUTER_HEAD) as aside:
        save_file(tensors, str(aside), metadata={"format": "pt"})
    logits = choices.states @ weight + bias
    return {
        "deferred": float((logits > 0).float().mean()),
        "loss": float(deferral_loss(logits, choices.own, choices.expert)),
        "alone": float(-choices.own.mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the recipe; returns the exit status."""
    description = "Add a deferral logit, which the method co_llm needs, to the router of a family."
    parser = recipe_parser("experts.deferral", description, out=", with experts and a router")
    arguments, recipe = recipe_arguments(parser, argv, "deferral")
    workshop = RouteWorkshop(recipe, load_base(recipe.base), arguments.work)
    print(json.dumps(train_deferral(workshop, arguments.out, needed(recipe.deferral, "deferral"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
