"""Training a router for experts in two stages: FusionRoute's (arXiv 2601.05106) supervised one, then complementary
DPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ladle.merging.members.router_head import ROUTER_HEAD, load_router_head
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig
from ladle.recipes.experts.expert import batches, language_loss
from ladle.recipes.experts.expert_views import ViewedAnswer
from ladle.recipes.routing_config import RouterConfig
from ladle.recipes.scoring import predictions
from ladle.recipes.training.descent import descend
from ladle.recipes.training.lora import load_adapter, new_adapter, save_adapter
from ladle.recipes.training.value import hidden_size

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class SeenPair:
    """A right and a wrong answer to one prompt with the experts' view of both."""

    right: ViewedAnswer
    wrong: ViewedAnswer


def routing_loss(scores: torch.Tensor, logprobs: torch.Tensor, informative: torch.Tensor) -> torch.Tensor:
    """-log sum_i softmax(w)_i p_i(y_t), the mean over informative positions; 0 where there are none.

    The paper sums over those positions the log of sum_i w_i log p_i's exponential and leaves open how w is
    constrained; softmax(w), the mixture of probabilities and the mean instead of a sum are our reconstruction.

    Args:
        scores: float [tokens, experts], w = W h at the state that predicts each token.
        logprobs: float [tokens, experts], the frozen experts' log-probabilities of the taught tokens.
        informative: bool [tokens], see `expert_views.informative`.
    """
    if not bool(informative.any()):
        return scores.sum() * 0.0
    mixed = torch.logsumexp(torch.log_softmax(scores, dim=-1) + logprobs, dim=-1)
    return -mixed[informative].mean()


def complementary_loss(
    winner: torch.Tensor,
    loser: torch.Tensor,
    winner_reference: torch.Tensor,
    loser_reference: torch.Tensor,
    expert_ratio: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Complementary DPO: -log sigmoid(beta [(winner - winner_reference) - (loser - loser_reference)] + beta ratio).

    The routed experts' ratio has no gradient (source: FusionRoute): a pair that they already tell apart weighs little,
    so the router learns to add what they lack.

    Args:
        winner, loser: float [pairs], the router's own log-probability of each answer, nats.
        winner_reference, loser_reference: float [pairs], those of the router after the first stage.
        expert_ratio: float [pairs], sum over tokens of the routed experts' log-probability of the winner minus that of
            the loser.

    Returns:
        scalar, the mean over pairs.
    """
    margin = (winner - winner_reference) - (loser - loser_reference)
    return -torch.nn.functional.logsigmoid(beta * margin + beta * expert_ratio.detach()).mean()


def routed_logprobs(scores: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """The log-probability, [tokens], under the expert with the greatest score at each token."""
    return logprobs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)


def new_router_head(hidden: int, experts: int) -> torch.nn.Linear:
    """A head that starts at zero, all experts being equally good: hidden -> experts, float32, no bias (the paper's has
    none)."""
    head = torch.nn.Linear(hidden, experts, bias=False, dtype=torch.float32)
    torch.nn.init.zeros_(head.weight)
    return head


def load_trained_head(folder: Path, hidden: int, experts: int) -> torch.nn.Linear:
    """The head that this recipe wrote into a folder.

    Raises:
        ladle.merging.exceptions.FamilyError: it is missing, broken or of another shape.
    """
    head = new_router_head(hidden, experts)
    head.load_state_dict({"weight": load_router_head(folder, experts, hidden).weight})
    return head


class RouterTrainer:
    """A router being trained: the base with its adapter, and its head. The base is left as it was by `close`."""

    def __init__(
        self,
        base: LoadedBase,
        adapter: AdapterConfig,
        config: RouterConfig,
        experts: int,
        start: Path,
        *,
        trained: bool,
    ) -> None:
        """
        Args:
            start: the adapter it starts as: an expert's, or, when `trained`, a router's with its head.
        """
        self.config = config
        self.model: PeftModel = new_adapter(base, adapter, "default")
        load_adapter(self.model, start)
        hidden = hidden_size(base)
        self.head = load_trained_head(start, hidden, experts) if trained else new_router_head(hidden, experts)

    def close(self) -> None:
        self.model.unload()

    def taught(self, samples: Sequence[ViewedAnswer], share: float) -> tuple[float, float, float]:
        """Adds the gradients of L_LM + lambda L_expert (source: FusionRoute), to adapter and head alike.

        Returns:
            (loss, L_LM, L_expert).
        """
        predicted = predictions(self.model, [sample.item for sample in samples])
        language = language_loss(predicted.logits, predicted.targets)
        routing = routing_loss(
            self.head(predicted.states),
            torch.cat([sample.logprobs for sample in samples]),
            torch.cat([sample.informative for sample in samples]),
        )
        loss = language + self.config.expert_loss * routing
        (loss * share).backward()
        return float(loss.detach()), float(language.detach()), float(routing.detach())

    def preferred(self, pairs: Sequence[SeenPair], reference: torch.Tensor, share: float) -> tuple[float, float, float]:
        """Adds the gradients of complementary DPO, to the adapter alone: the head is frozen (source: FusionRoute).

        Args:
            reference: float [2, pairs], see `totals`.

        Returns:
            (loss, share of pairs with a positive margin, mean margin in nats).
        """
        (winner, loser), expert = self._totals(pairs)
        loss = complementary_loss(winner, loser, reference[0], reference[1], expert[0] - expert[1], self.config.beta)
        (loss * share).backward()
        margin = ((winner - reference[0]) - (loser - reference[1])).detach()
        return float(loss.detach()), float((margin > 0).float().mean()), float(margin.mean())

    @torch.no_grad()
    def totals(self, pairs: Sequence[SeenPair]) -> torch.Tensor:
        """The router's own log-probabilities, float32 [2, pairs]: right answers, then wrong ones."""
        return self._totals(pairs)[0]

    def _totals(self, pairs: Sequence[SeenPair]) -> tuple[torch.Tensor, torch.Tensor]:
        """The router's and the routed experts' log-probabilities of whole answers, both [2, pairs]."""
        seen = [*(pair.right for pair in pairs), *(pair.wrong for pair in pairs)]
        predicted = predictions(self.model, [answer.item for answer in seen])
        with torch.no_grad():
            expert = routed_logprobs(self.head(predicted.states), torch.cat([answer.logprobs for answer in seen]))
        zeros = torch.zeros(len(seen))
        own = zeros.index_add(0, predicted.rows, predicted.logprobs())
        return own.view(2, -1), zeros.index_add(0, predicted.rows, expert).view(2, -1)

    def save(self, folder: Path, base_name: str) -> None:
        save_adapter(self.model, folder, base_name, {"weight": self.head.weight}, ROUTER_HEAD)

    @property
    def trunk(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def train_router_sft(
    base: LoadedBase,
    samples: Sequence[ViewedAnswer],
    adapter: AdapterConfig,
    config: RouterConfig,
    start: Path,
    folder: Path,
    base_name: str,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """The first stage: one pass over answers, language and routing loss, from an expert's adapter.

    Args:
        samples: right answers with the experts' view of them.
        start: folder of the instruction-following expert (source: FusionRoute starts there).
        folder: receives the adapter and `router_head.safetensors`; there whole or not at all.

    Returns:
        "loss", "language" and "routing", means over the last quarter of the steps.
    """
    trainer = RouterTrainer(base, adapter, config, samples[0].logprobs.shape[1], start, trained=False)
    random = np.random.default_rng(config.seed)
    order = batches([sample.item for sample in samples], config.batch, random)
    steps = [[[samples[index] for index in batch]] for batch in order]
    rates = [(config.learning_rate, trainer.trunk), (config.head_learning_rate, list(trainer.head.parameters()))]
    limits = {"warmup": config.warmup, "max_gradient": config.max_gradient}
    try:
        loss, language, routing = descend("router, first stage", rates, steps, trainer.taught, **limits)
        trainer.save(folder, base_name)
    finally:
        trainer.close()
    report(f"router, first stage: language {language:.3f}, routing {routing:.3f}, {len(steps)} steps")
    return {"loss": float(loss), "language": float(language), "routing": float(routing)}


def train_router_cdpo(
    base: LoadedBase,
    samples: Sequence[ViewedAnswer],
    pairs: Sequence[SeenPair],
    adapter: AdapterConfig,
    config: RouterConfig,
    start: Path,
    folder: Path,
    base_name: str,
    report: Callable[[str], None] = print,
) -> dict[str, float]:
    """The second stage: complementary DPO on pairs, mixed with steps of the first stage's kind.

    A step has pairs or samples, never both, and what has no gradient in a step stays as it is: so pairs train the
    adapter alone, samples adapter and head (source: FusionRoute).

    Args:
        samples: right answers that are mixed in.
        start: the router after the first stage; also what DPO is measured against.
        folder: as in `train_router_sft`.

    Returns:
        "accuracy" (share of pairs with a positive margin) and "margin" (nats) over the last quarter of the pairs'
        steps.
    """
    trainer = RouterTrainer(base, adapter, config, pairs[0].right.logprobs.shape[1], start, trained=True)
    random = np.random.default_rng(config.seed)
    paired = batches([pair.right.item for pair in pairs], config.pairs_per_step, random)
    mixed = batches([sample.item for sample in samples], config.batch, random)
    losses: list[tuple[float, float]] = []
    try:
        references = [trainer.totals([pairs[index] for index in batch]) for batch in paired]

        def backward(step: tuple[str, int], share: float) -> tuple[float]:
            kind, number = step
            if kind == "samples":
                return trainer.taught([samples[index] for index in mixed[number]], share)[:1]
            loss, *figures = trainer.preferred([pairs[index] for index in paired[number]], references[number], share)
            losses.append((figures[0], figures[1]))
            return (loss,)

        kinds = [("pairs", number) for number in range(len(paired))]
        kinds += [("samples", number) for number in range(len(mixed))]
        steps = [[kinds[index]] for index in random.permutation(len(kinds))]
        rates = [
            (config.pair_learning_rate, trainer.trunk),
            (config.pair_learning_rate, list(trainer.head.parameters())),
        ]
        descend("router, second stage", rates, steps, backward, warmup=config.warmup, max_gradient=config.max_gradient)
        trainer.save(folder, base_name)
    finally:
        trainer.close()
    accuracy, margin = np.mean(losses[-max(1, len(losses) // 4) :], axis=0).tolist()
    report(f"router, second stage: accuracy {accuracy:.2f}, margin {margin:.1f} nats, {len(steps)} steps")
    return {"accuracy": float(accuracy), "margin": float(margin)}
