"""The part of a recipe that makes domain experts and a router: the tables [experts], [router], [routing_evaluation]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertsConfig:
    """Training of the experts (see `expert.py`). `samples` counts questions by domain; its order is that of the
    family's experts and of the rows of the router's head."""

    seed: int
    samples: dict[str, int]
    batch: int
    learning_rate: float
    warmup: float
    max_gradient: float


@dataclass(frozen=True)
class RouterConfig:
    """Training of the router in two stages (see `router.py`).

    `samples` questions a domain go into the first stage, where `expert_loss` is lambda. The second one has `pairs`
    questions a domain with a right and a wrong answer, and `pair_samples` of the first stage's mixed in; `beta` is
    that of DPO. `max_tokens` bounds the experts' answers, of which wrong ones are taken.
    """

    init: str
    seed: int
    samples: int
    batch: int
    learning_rate: float
    head_learning_rate: float
    expert_loss: float
    warmup: float
    max_gradient: float
    pairs: int
    pair_samples: int
    pairs_per_step: int
    beta: float
    pair_learning_rate: float
    max_tokens: int
    batch_rows: int


@dataclass(frozen=True)
class DeferralConfig:
    """Training of the deferral logit (see `deferral.py`): `samples` questions a domain that the router has not seen,
    `steps` of Adam over all of their tokens, `decay` times the squared length of the weights added to the loss."""

    samples: int
    steps: int
    learning_rate: float
    decay: float


@dataclass(frozen=True)
class RoutingEvaluationConfig:
    """Held-out questions: `prompts` a domain, greedy answers of at most `max_tokens`."""

    seed: int
    prompts: int
    max_tokens: int
    batch_rows: int
    bootstrap: int


def check_routing(experts: ExpertsConfig, router: RouterConfig, where: str) -> None:
    """Refuses what neither stage could train with.

    Raises:
        ValueError: an unknown domain, fewer than two of them, an initial expert that there is none of, a count below 1,
            more mixed-in samples than the first stage has.
    """
    from ladle.recipes.domains.domains import DOMAINS

    for domain, count in experts.samples.items():
        if domain not in DOMAINS:
            raise ValueError(f"{where}: experts.samples: {domain!r} is not allowed; allowed: {', '.join(DOMAINS)}")
        _positive(where, f"experts.samples.{domain}", count)
    if len(experts.samples) < 2:
        raise ValueError(f"{where}: experts.samples: {experts.samples!r} is not allowed; allowed: at least two domains")
    if router.init not in experts.samples:
        raise ValueError(f"{where}: router.init: {router.init!r} is not allowed; allowed: {', '.join(experts.samples)}")
    _positive(where, "experts.batch", experts.batch)
    for key in ("samples", "batch", "pairs", "pair_samples", "pairs_per_step", "max_tokens", "batch_rows"):
        _positive(where, f"router.{key}", getattr(router, key))
    if router.pair_samples > router.samples:
        raise ValueError(
            f"{where}: router.pair_samples: {router.pair_samples!r} is not allowed; allowed: at most router.samples, "
            f"{router.samples}"
        )
    if router.expert_loss < 0.0:
        raise ValueError(f"{where}: router.expert_loss: {router.expert_loss!r} is not allowed; allowed: 0 or more")


def _positive(where: str, key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{where}: {key}: {value!r} is not allowed; allowed: 1 or more")
