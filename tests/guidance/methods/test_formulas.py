"""Every method's plan, executed as ``Plan`` says in float64, against the method's formula written out by hand.

Logits are drawn at random for every set of weights that a plan mentions: what is tested is which weights are asked for,
on which prompt, and what becomes of the answers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from guided_families import value, with_values
from numpy.typing import NDArray
from tiny_models import OBJECTIVES

from ladle.guidance.plan import Plan, PromptView, Source
from ladle.guidance.plan import Steering as S
from ladle.guidance.registry import resolve
from ladle.merging.family.family import Family

TOKENS = 60
Vector = NDArray[np.float64]


class World:
    """Random answers of every model that may be asked."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._answers: dict[Any, Vector] = {}

    def logits(
        self, terms: Mapping[str, float] | None = None, model: str = "", view: PromptView | None = None
    ) -> Vector:
        return self._answer(("logits", _rounded(terms or {}), model, view))

    def value(self, head: Mapping[str, float], view: PromptView | None = None) -> Vector:
        """What the values ``head`` say whose weights bear their own names."""
        return self._answer(("value", _rounded(head), _rounded(head), "", view))

    def of(self, source: Source) -> Vector:
        terms = _rounded(dict(source.coefficients))
        if source.head:
            return self._answer(("value", terms, _rounded(dict(source.head)), source.model, source.view))
        return self._answer(("logits", terms, source.model, source.view))

    def _answer(self, key: Any) -> Vector:
        if key not in self._answers:
            self._answers[key] = self._rng.normal(0, 2, TOKENS)
        return self._answers[key]


def _rounded(terms: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset((name, round(float(share), 9)) for name, share in terms.items())


def lp(logits: Vector) -> Vector:
    return logits - np.logaddexp.reduce(logits)


def best(logits: Vector, count: int) -> NDArray[np.bool_]:
    return logits >= np.sort(logits)[-count]


def nucleus(logits: Vector, mass: float) -> NDArray[np.bool_]:
    order = np.argsort(-logits)
    kept = np.zeros(TOKENS, dtype=bool)
    total = 0.0
    for token in order:
        if total >= mass:
            break
        kept[token] = True
        total += np.exp(lp(logits)[token])
    return kept


def execute(plan: Plan, world: World) -> Vector:
    """The score that a plan describes, as log-probabilities."""
    models = [source for source in plan.sources if not source.head and source.weight]
    if plan.rule == "linear":
        score = sum((source.weight * world.of(source) for source in models), np.zeros(TOKENS))
    else:
        alpha = plan.alpha if plan.rule == "alpha" else 1.0
        rows = [-alpha * lp(world.of(source)) + np.log(source.weight) for source in models]
        score = -np.logaddexp.reduce(rows) / alpha
    first = world.of(plan.sources[0])
    assert not plan.sources[0].head
    assert any(source.head for source in plan.sources) == (plan.scorer is not None)
    if plan.scorer is not None:
        chosen = best(first, plan.scorer.candidates)
        worth = np.zeros(TOKENS)
        for source in plan.sources:
            if source.head:
                said = world.of(source)
                worth += source.weight * (-np.logaddexp(0, -said) if plan.scorer.transform == "log_sigmoid" else said)
        worth *= plan.scorer.strength
        worth -= worth[chosen].mean() if plan.scorer.centred else 0.0
        outside = score if not plan.scorer.restricted else np.full(TOKENS, -np.inf)
        score = np.where(chosen, score + worth, outside)
    if plan.mask is not None:
        kept = {
            "top_k": lambda: best(first, int(plan.mask.value)),
            "top_p": lambda: nucleus(first, plan.mask.value),
            "relative": lambda: lp(first) >= lp(first).max() + np.log(plan.mask.value),
        }[plan.mask.kind]()
        score = np.where(kept, score, -np.inf)
    return lp(score)


@pytest.fixture
def world(seed: int) -> World:
    return World(seed)


@pytest.fixture
def eta(seed: int) -> float:
    return float(np.random.default_rng(seed + 1).uniform(0.3, 2.5))


def agree(plan: Plan, world: World, expected: Vector) -> None:
    np.testing.assert_allclose(execute(plan, world), lp(expected), atol=1e-9)


def soup(family: Family, mu: Mapping[str, float]) -> dict[str, float]:
    assert family.matrix is not None
    solved = np.linalg.solve(family.matrix.T, [mu[name] for name in OBJECTIVES])
    return {f"bone-{name}": share for name, share in zip(OBJECTIVES, solved, strict=True)}


def of(prefix: str, mu: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}-{name}": weight for name, weight in mu.items()}


def within(kept: NDArray[np.bool_], score: Vector) -> Vector:
    return np.where(kept, score, -np.inf)


def test_mage_implicit(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    base, plain = world.logits(soup(guided, mu)), world.logits()
    merged = resolve(guided, S("mage", mu, eta))
    assert [source.role for source in merged.sources] == ["merged", "guide", "reference"]
    agree(merged, world, lp(base) + eta * (lp(world.logits(of("tuned", mu))) - lp(plain)))
    ensemble = resolve(guided, S("mage", mu, eta, combine="ensemble"))
    assert len(ensemble.sources) == 5
    ratio = sum(weight * (lp(world.logits({f"tuned-{name}": 1.0})) - lp(plain)) for name, weight in mu.items())
    agree(ensemble, world, lp(base) + eta * ratio)


def test_mage_without_a_reference(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    arms = with_values(guided, *(value(f"arm-{name}", objective=name, reference=False) for name in OBJECTIVES))
    expected = lp(world.logits(soup(guided, mu))) + eta * lp(world.logits(of("arm", mu)))
    agree(resolve(arms, S("mage", mu, eta)), world, expected)
    agree(resolve(arms, S("mage", mu, eta, normalize="sum")), world, expected / (1 + eta))


@pytest.mark.parametrize("candidates", [None, 7])
def test_mage_explicit(guided: Family, mu: dict[str, float], world: World, eta: float, candidates: int | None) -> None:
    base = world.logits(soup(guided, mu))
    chosen = best(base, candidates or 20)
    merged = world.value(of("scorer", mu))
    plan = resolve(guided, S("mage", mu, eta, value="explicit", candidates=candidates, combine="merged"))
    agree(plan, world, np.where(chosen, base + eta * (merged - merged[chosen].mean()), base))
    single = sum(weight * world.value({f"scorer-{name}": 1.0}) for name, weight in mu.items())
    plan = resolve(guided, S("mage", mu, eta, value="explicit", candidates=candidates))
    agree(plan, world, np.where(chosen, base + eta * (single - single[chosen].mean()), base))


def test_mage_both(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    base = world.logits(soup(guided, mu))
    chosen = best(base, 20)
    worth = sum(weight * world.value({f"scorer-{name}": 1.0}) for name, weight in mu.items())
    guide = world.logits(of("tuned", mu)) - world.logits()
    centred = np.where(chosen, worth - worth[chosen].mean(), 0)
    agree(resolve(guided, S("mage", mu, eta, value="both")), world, base + eta * (guide + centred))
    apart = S.parse({"method": "mage", "preference": mu, "value": "both", "strength": {"explicit": -0.4}})
    agree(resolve(guided, apart), world, base + guide - 0.4 * centred)
    still = S.parse({"method": "mage", "preference": mu, "value": "both", "strength": {"explicit": 0, "implicit": eta}})
    plan = resolve(guided, still)
    assert plan.scorer is None and not any(source.head for source in plan.sources)
    agree(plan, world, base + eta * guide)


def test_values_of_mixed_rewards_are_solved_for(guided: Family, mu: dict[str, float], world: World, seed: int) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(3), size=3) + np.eye(3)
    rows /= rows.sum(axis=1, keepdims=True)
    mixed = with_values(guided, *(value(f"mix-{i}", rewards=tuple(row)) for i, row in enumerate(rows.tolist())))
    solved = np.linalg.solve(rows.T, [mu[name] for name in OBJECTIVES])
    psi = world.logits({f"mix-{i}": share for i, share in enumerate(solved)})
    expected = lp(world.logits(soup(guided, mu))) + 1.0 * (lp(psi) - lp(world.logits()))
    agree(resolve(mixed, S("mage", mu)), world, expected)


@pytest.mark.parametrize("divergence", [None, "reverse_kl", "jsd", "forward_kl", "alpha"])
@pytest.mark.parametrize("strength", [None, 0.6])
def test_mod(
    guided: Family, mu: dict[str, float], world: World, divergence: str | None, strength: float | None, seed: int
) -> None:
    alpha = float(np.random.default_rng(seed).uniform(0.2, 3)) if divergence == "alpha" else None
    plan = resolve(guided, S("mod", mu, strength, divergence=divergence, alpha=alpha))
    share = 1.0 if strength is None else strength
    weights = {name: share * weight for name, weight in mu.items()}
    rows = {name: lp(world.logits({f"only-{name}": 1.0})) for name in mu}
    if share != 1.0:
        weights["base"], rows["base"] = 1 - share, lp(world.logits())
    if divergence in ("forward_kl", "alpha"):
        power = alpha or 1.0
        expected = -np.log(sum(weights[name] * np.exp(-power * rows[name]) for name in rows)) / power
    else:
        expected = sum(weights[name] * rows[name] for name in rows)
    agree(plan, world, expected)


def test_genarm(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    expected = lp(world.logits()) + sum(eta * mu[n] * lp(world.logits({f"tuned-{n}": 1.0})) for n in mu)
    agree(resolve(guided, S("genarm", mu, eta)), world, expected)
    agree(resolve(guided, S("genarm", mu, eta, normalize="sum")), world, expected / (1 + eta))
    merged = lp(world.logits()) + eta * lp(world.logits(of("tuned", mu)))
    agree(resolve(guided, S("genarm", mu, eta, combine="merged")), world, merged)


def test_parm(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    psi = world.logits({"arm": 1.0, **{f"arm@{name}": weight for name, weight in mu.items()}})
    agree(resolve(guided, S("parm", mu, eta)), world, lp(world.logits()) + eta * lp(psi))


def test_proxy_tuning_across_sizes(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    small = with_values(guided, *(value(f"tuned-{n}", objective=n, model="small") for n in OBJECTIVES))
    tuned = sum(mu[n] * lp(world.logits({f"tuned-{n}": 1.0}, "small")) for n in mu)
    plan = resolve(small, S("proxy_tuning", mu, eta))
    agree(plan, world, lp(world.logits()) + eta * (tuned - lp(world.logits(model="small"))))
    assert [source.model for source in plan.sources if source.role == "reference"] == ["small"]


def test_proxy_tuning_of_the_base_itself(guided: Family, mu: dict[str, float], world: World) -> None:
    """Base and untuned model are one source; at strength 1 nothing but the tuned models is left."""
    plan = resolve(guided, S("proxy_tuning", mu))
    assert [source.role for source in plan.sources] == ["guide"] * 3
    agree(plan, world, sum(mu[n] * lp(world.logits({f"tuned-{n}": 1.0})) for n in mu))


def test_dexperts(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    positive, simple, concise = OBJECTIVES
    pairs = with_values(
        guided,
        value("good", objective=positive, anti="bone-positive"),
        value("plain", objective=simple),
        value("tiny", objective=concise, model="small", anti="tiny-bad", system="Be brief."),
    )
    view = PromptView("system", "Be brief.")
    base = world.logits()
    steer = (
        mu[positive] * (world.logits({"good": 1.0}) - world.logits({"bone-positive": 1.0}))
        + mu[simple] * (world.logits({"plain": 1.0}) - base)
        + mu[concise] * (world.logits({"tiny": 1.0}, "small", view) - world.logits({"tiny-bad": 1.0}, "small", view))
    )
    agree(resolve(pairs, S("dexperts", mu, eta)), world, within(nucleus(base, 0.9), base + eta * steer))
    agree(resolve(pairs, S("dexperts", mu)), world, within(nucleus(base, 0.9), base + 2 * steer))


def test_contrastive(guided: Family, world: World, eta: float) -> None:
    base, amateur = world.logits(), world.logits(model="amateur")
    plausible = lp(base) >= lp(base).max() + np.log(0.1)
    agree(resolve(guided, S("contrastive", strength=eta)), world, within(plausible, lp(base) - eta * amateur / 0.5))
    agree(resolve(guided, S("contrastive")), world, within(plausible, lp(base) - lp(amateur)))


@pytest.mark.parametrize(
    ("negative", "view"),
    [(None, PromptView("prompt", "")), ("", PromptView("prompt", "")), ("Be sad.", PromptView("system", "Be sad."))],
)
def test_cfg(guided: Family, world: World, eta: float, negative: str | None, view: PromptView) -> None:
    c, u = lp(world.logits()), lp(world.logits(view=view))
    agree(resolve(guided, S("cfg", strength=eta, negative_prompt=negative)), world, u + eta * (c - u))
    agree(resolve(guided, S("cfg", negative_prompt=negative)), world, u + 1.5 * (c - u))


def test_pad(guided: Family, mu: dict[str, float], world: World, eta: float) -> None:
    view = PromptView("system", "You like short answers.")
    told = with_values(
        guided, *(value(f"tuned-{name}", objective=name, system="You like short answers.") for name in OBJECTIVES)
    )
    base, psi = world.logits(), world.logits(of("tuned", mu), view=view)
    for candidates in (None, 4):
        chosen = best(base, candidates or 10)
        expected = np.full(TOKENS, -np.inf)
        expected[chosen] = base[chosen] + eta * (lp(psi[chosen]) - lp(base[chosen]))
        agree(resolve(told, S("pad", mu, eta, candidates=candidates)), world, expected)
    # At 1 only the value's order counts, and yet the base has to say which tokens are candidates.
    whole = resolve(told, S("pad", mu))
    assert (whole.sources[0].role, whole.sources[0].weight) == ("base", 0.0)
    agree(whole, world, within(best(base, 10), psi))


@pytest.mark.parametrize(("method", "count"), [("args", 10), ("cd", 20), ("fudge", 200), ("vas", 20)])
@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("combine", [None, "ensemble", "merged"])
def test_scored_methods(
    guided: Family,
    mu: dict[str, float],
    world: World,
    eta: float,
    method: str,
    count: int,
    candidates: int | None,
    combine: str | None,
) -> None:
    base = world.logits()
    chosen = best(base, min(TOKENS, candidates or count))
    said = [(mu[n], world.value({f"scorer-{n}": 1.0})) for n in mu]
    if combine == "merged":
        said = [(1.0, world.value(of("scorer", mu)))]
    worth = sum(weight * (np.log(1 / (1 + np.exp(-v))) if method == "fudge" else v) for weight, v in said)
    if method == "vas":
        expected = np.where(chosen, base + eta * (worth - worth[chosen].mean()), base)
    else:
        expected = within(chosen, base + eta * worth)
    plan = resolve(guided, S(method, mu, eta, candidates=candidates, combine=combine))
    assert plan.scorer is not None and plan.scorer.candidates == (candidates or count)
    if plan.scorer.candidates <= TOKENS:
        agree(plan, world, expected)


def test_custom(guided: Family, world: World) -> None:
    small = with_values(guided, value("tiny", objective="positive", model="small", system="Hm."), *guided.values)
    terms = [
        {"source": {"bone-positive": 0.5, "tuned-simple": -0.25}, "weight": 1.5},
        {"source": "base", "weight": -0.5, "system": "Be gloomy."},
        {"source": "small", "weight": -0.125},
        {"source": "tiny", "weight": 0.125},
        {"source": "only-concise", "weight": 0.25},
        {"source": {"arm": 1, "arm@simple": 1}, "weight": 0.5},
    ]
    expected = (
        1.5 * world.logits({"bone-positive": 0.5, "tuned-simple": -0.25})
        - 0.5 * world.logits(view=PromptView("system", "Be gloomy."))
        - 0.125 * world.logits(model="small")
        + 0.125 * world.logits({"tiny": 1.0}, "small", PromptView("system", "Hm."))
        + 0.25 * world.logits({"only-concise": 1.0})
        + 0.5 * world.logits({"arm": 1.0, "arm@simple": 1.0})
    )
    agree(resolve(small, S("custom", terms=terms)), world, expected)
    agree(resolve(small, S("custom", terms=terms, normalize="sum")), world, expected / 1.75)


@pytest.mark.parametrize("method", ["genarm", "proxy_tuning", "dexperts", "contrastive", "cfg", "pad", "vas"])
def test_the_base_may_be_merged(guided: Family, mu: dict[str, float], world: World, eta: float, method: str) -> None:
    """Guidance stays what it is around another base."""
    stated = {"bone-positive": 0.75, "bone-simple": -0.5}
    preference = None if method in ("contrastive", "cfg") else mu
    plan = resolve(guided, S(method, preference, eta, coefficients=stated))
    assert plan.coefficients is not None and plan.coefficients.as_dict() == stated
    assert plan.sources[0].coefficients == tuple(stated.items()) and plan.sources[0].role == "merged"
    base, plain = world.logits(stated), world.logits()
    tuned = sum(mu[n] * world.logits({f"tuned-{n}": 1.0}) for n in mu)
    worth = sum(mu[n] * world.value({f"scorer-{n}": 1.0}) for n in mu)
    chosen = best(base, 20)
    expected = {
        "genarm": lambda: base + eta * tuned,
        "proxy_tuning": lambda: base + eta * (tuned - plain),
        "dexperts": lambda: within(nucleus(base, 0.9), base + eta * (tuned - base)),
        "contrastive": lambda: within(
            lp(base) >= lp(base).max() + np.log(0.1), base - 2 * eta * world.logits(model="amateur")
        ),
        "cfg": lambda: eta * base + (1 - eta) * world.logits(stated, view=PromptView("prompt", "")),
        "pad": lambda: within(best(base, 10), (1 - eta) * base + eta * world.logits(of("tuned", mu))),
        "vas": lambda: np.where(chosen, base + eta * (worth - worth[chosen].mean()), base),
    }[method]()
    agree(plan, world, expected)
