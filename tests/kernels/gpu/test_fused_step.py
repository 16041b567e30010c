"""The fused step on batches of mixed plans: against one sequence at a time, written out in float64, and the tokens of
the reference."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not on this platform")

from kernel_device import DEVICE
from triton_interpreter import MARKS

from ladle.kernels import step_tables
from ladle.kernels.gpu.fused_step import fused_step, guided_scores
from ladle.kernels.reference import operations as reference
from ladle.kernels.reference import step as step_reference
from ladle.kernels.step_tables import Budgets, Ranges, StepTables, plain_tables
from ladle.server.engine.scores.slot_tables import draw_keys

pytestmark = MARKS

BLOCK, ROWS, WIDTH, PLANS = 64, 9, 4, 7
CLOSE = 1e-5
BOUND = 3e-5
"""Of a logprob, for all dtypes, since half precision is only how logits are stored: scores of up to 60 in size round to
4e-6, a few times over where there are several sources and normalisers."""


@pytest.fixture
def rng() -> random.Random:
    seed = fresh_seed()
    torch.manual_seed(seed)
    return random.Random(seed)


def draw_plan(rng: random.Random, vocabulary: int) -> dict[str, Any]:
    """One sequence's plan as plain numbers; every part is there or not."""

    def some(*choices: Any) -> Any:
        return rng.choice(choices)

    tokens = rng.sample(range(vocabulary), min(vocabulary, 20))
    rule = rng.choice([step_tables.LINEAR, step_tables.LINEAR, step_tables.DIVERGENCE, step_tables.ROUTED])
    count = rng.randint(1 if rule != step_tables.ROUTED else 2, WIDTH)
    weights = [rng.gauss(0, 1) if rule == step_tables.LINEAR else rng.uniform(0.1, 1) for _ in range(count)]
    if rule == step_tables.LINEAR:
        weights[0] = 1.0
    if rule == step_tables.ROUTED:
        weights[1:] = [weight / sum(weights[1:]) for weight in weights[1:]]
        weights[0] = some(0.0, 1.0, 0.5)
    mask = some(None, None, ("mask_top_k", 5), ("mask_top_p", 0.8), ("mask_relative", 0.05))
    penalised = rng.random() < 0.3
    temperature = some(0.0, 0.7, 1.0, 1.3)
    return {
        "rule": rule,
        "source_rows": [rng.randrange(ROWS) for _ in range(count)],
        "weights": weights,
        "scale": some(1.0, 0.5, 2.0),
        "candidates": dict.fromkeys(tokens[: rng.randint(1, 5)], 0.0) if rng.random() < 0.3 else {},
        "restricted": False,
        "budget": (rng.randrange(ROWS), rng.choice([0.01, 0.3])) if rng.random() < 0.3 else None,
        "base": rng.randrange(ROWS) if mask else -1,
        "mask_top_k": mask[1] if mask and mask[0] == "mask_top_k" else 0,
        "mask_top_p": mask[1] if mask and mask[0] == "mask_top_p" else 1.0,
        "mask_relative": mask[1] if mask and mask[0] == "mask_relative" else 0.0,
        "allowed": set(tokens[:15]) if rng.random() < 0.2 else None,
        "counts": {token: rng.randint(0, 3) for token in tokens[5:15]} if penalised else None,
        "repetition": rng.uniform(0.7, 1.5) if penalised else 1.0,
        "presence": rng.uniform(-1, 1) if penalised else 0.0,
        "frequency": rng.uniform(-1, 1) if penalised else 0.0,
        "biases": {token: rng.uniform(-5, 5) for token in tokens[: rng.randint(1, 18)]} if rng.random() < 0.3 else {},
        "temperature": temperature,
        # Requests may ask for a range only where there is a temperature.
        "spread": some(0.0, 0.0, 0.4, 1.1, 2.0) if temperature else 0.0,
        "exponent": some(0.5, 1.0, 3.0),
        "top_k": some(0, 0, 3, 40, vocabulary + 1),
        "top_p": some(1.0, 1.0, 0.5, 0.95),
        "min_p": some(0.0, 0.0, 0.1),
        "wanted": some(0, 0, 1, 4),
        "key": draw_keys(np.array([rng.getrandbits(63)], dtype=np.uint64), np.array([rng.randrange(500)]))[0].tolist(),
    }


def lay_out(plans: list[dict[str, Any]], vocabulary: int) -> StepTables:
    """The tables of ``plans``."""
    n = len(plans)

    def padded(name: str, fill: float) -> Tensor:
        columns = [list(plan[name]) for plan in plans]
        width = max(1, *(len(column) for column in columns))
        return torch.tensor([column + [fill] * (width - len(column)) for column in columns])

    for plan in plans:
        plan |= {"values": list(plan["candidates"].values()), "bias_values": list(plan["biases"].values())}
    names = [name for name in step_tables.COLUMNS if name in plans[0]]
    columns = {name: [plan[name] for plan in plans] for name in names}
    columns["candidates"] = [len(plan["candidates"]) for plan in plans]
    columns["biases"] = [len(plan["biases"]) for plan in plans]
    columns["counted"] = [i if plan["counts"] is not None else -1 for i, plan in enumerate(plans)]
    columns["allowed"] = [i if plan["allowed"] is not None else -1 for i, plan in enumerate(plans)]
    columns["key_0"], columns["key_1"] = ([plan["key"][k] for plan in plans] for k in (0, 1))
    counts = torch.zeros(n, vocabulary, dtype=torch.int32)
    seen, allowed = torch.zeros(n, vocabulary, dtype=torch.bool), torch.zeros(n, vocabulary, dtype=torch.bool)
    for i, plan in enumerate(plans):
        for token, count in (plan["counts"] or {}).items():
            counts[i, token], seen[i, token] = count, True
        allowed[i, list(plan["allowed"] or ())] = True
    made = plain_tables(padded("source_rows", 0).long(), padded("weights", 0.0)).changed(
        **{name: torch.tensor(column) for name, column in columns.items()}
    )
    budgets = [(i, *plan["budget"]) for i, plan in enumerate(plans) if plan["budget"]]
    index, bases, nats = zip(*budgets, strict=True) if budgets else ((), (), ())
    limited, based = (torch.tensor(part, dtype=torch.int64, device=DEVICE) for part in (index, bases))
    ranges = [(i, plan["spread"], plan["exponent"]) for i, plan in enumerate(plans) if plan["spread"]]
    warmed = torch.tensor([i for i, _, _ in ranges], dtype=torch.int64)
    spreads, exponents = (torch.tensor([entry[k] for entry in ranges], dtype=torch.float64) for k in (1, 2))
    made = replace(
        made, candidates=padded("candidates", 0).long(), values=padded("values", 0.0).float(),
        biased=padded("biases", 0).long(), biases=padded("bias_values", 0.0).float(), counts=counts, seen=seen,
        allowed=allowed, linear=False, masks=True, truncates=True, wanted=max(columns["wanted"]),
        traced=torch.arange(0, n, 2),
        budgets=Budgets(limited, based, torch.tensor(nats, dtype=torch.float64, device=DEVICE)),
        ranges=Ranges(*(part.to(DEVICE) for part in (warmed, spreads, exponents))),
    )  # fmt: skip
    moved = {name: value.to(DEVICE) for name, value in vars(made).items() if isinstance(value, Tensor)}
    return replace(made, **moved)


def cut(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> tuple[np.ndarray, float]:
    """Which of the scores survive, and by how much the nearest decision was made."""
    ranked = np.sort(scores)[::-1]
    floor, margin = -np.inf, 1.0
    if 0 < top_k < len(scores):
        floor = ranked[top_k - 1]
        margin = abs(floor - ranked[top_k]) if np.isfinite(floor) else 1.0
        margin = margin or 1.0  # ties survive together
    kept = ranked[ranked >= floor]
    if top_p < 1:
        p = np.exp(kept - kept[0])
        before = np.cumsum(p / p.sum()) - p / p.sum()
        margin = min([margin, *np.abs(before[1:] - top_p)])
        floor = max(floor, kept[max(1, int((before < top_p).sum())) - 1])
    ratio = np.exp(scores - scores.max())
    if min_p > 0:
        margin = min([margin, *np.abs(ratio - min_p)])
    return (scores >= floor) & (ratio >= min_p), float(margin)


def warm(scores: np.ndarray, plan: dict[str, Any]) -> float:
    """The temperature of ``scores``: between its bounds by the share of the entropy that there could be."""
    left = scores[scores > -np.inf]
    if not plan["spread"] or len(left) < 2:
        return float(plan["temperature"])
    p = np.exp(left - left.max())
    p = p[p > 0] / p.sum()
    share = -(p * np.log(p)).sum() / np.log(len(left))
    low, high = max(0.0, plan["temperature"] - plan["spread"]), plan["temperature"] + plan["spread"]
    return float(low + (high - low) * share ** plan["exponent"])


def expected_step(logits: Tensor, plan: dict[str, Any]) -> tuple[np.ndarray, int, float, np.ndarray]:
    """(combined scores, token, by how much it was decided, combined scores before a grammar) of one sequence, in
    float64."""
    rows = logits.double().cpu().numpy()
    logprobs = torch.log_softmax(logits.double().cpu(), -1).numpy()
    own, weights, scale = plan["source_rows"], np.array(plan["weights"]), plan["scale"]
    if plan["rule"] == step_tables.LINEAR:
        scores = (rows[own] * weights[:, None]).sum(0)
    elif plan["rule"] == step_tables.DIVERGENCE:
        scores = -np.log((weights[:, None] * np.exp(-scale * logprobs[own])).sum(0)) / scale
    else:
        mixed = np.log((weights[1:, None] * np.exp(logprobs[own[1:]])).sum(0))
        scores = weights[0] * logprobs[own[0]] + scale * mixed
    if plan["candidates"] or plan["restricted"]:
        summed = {token: scores[token] + value for token, value in plan["candidates"].items()}
        scores = np.full_like(scores, -np.inf) if plan["restricted"] else scores
        for token, value in summed.items():
            scores[token] = value
    margin = 1.0
    limited = np.ones(len(scores), dtype=bool)
    if plan["allowed"] is not None:
        limited[:] = False
        limited[list(plan["allowed"])] = True
    if plan["base"] >= 0:
        base = np.where(limited, rows[plan["base"]], -np.inf)
        plausible, margin = cut(base, plan["mask_top_k"], plan["mask_top_p"], plan["mask_relative"])
        scores = np.where(plausible, scores, -np.inf)
    guided = scores
    final = np.where(limited, scores, -np.inf)
    drawn = final.copy()
    for token, count in (plan["counts"] or {}).items():
        drawn[token] *= plan["repetition"] if drawn[token] <= 0 else 1 / plan["repetition"]
        drawn[token] -= plan["presence"] * (count > 0) + plan["frequency"] * count
    for token, value in plan["biases"].items():
        drawn[token] += value
    temperature = warm(drawn, plan) if plan["temperature"] > 0 else 0.0
    if temperature > 0:
        drawn = drawn / temperature
        survives, near = cut(drawn, plan["top_k"], plan["top_p"], plan["min_p"])
        margin = min(margin, near)
        key = torch.tensor(plan["key"], dtype=torch.int32)
        noise = reference.gumbel(key, torch.arange(len(drawn), dtype=torch.int32)).double().numpy()
        drawn = np.where(survives, drawn + noise, -np.inf)
    best = np.sort(drawn)[::-1]
    if len(best) > 1 and np.isfinite(best[1]):
        margin = min(margin, best[0] - best[1])
    return final, int(drawn.argmax()), float(margin), guided


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mixed_plans_equal_float64_and_the_reference(dtype: torch.dtype, rng: random.Random) -> None:
    vocabulary = {torch.float32: BLOCK + 5, torch.bfloat16: BLOCK, torch.float16: BLOCK - 1}[dtype]
    logits = (torch.randn(ROWS, vocabulary, device=DEVICE) * 4).to(dtype)
    plans = [draw_plan(rng, vocabulary) for _ in range(PLANS)]
    for plan in plans:
        plan["candidates"] = {token: rng.uniform(-4, 4) for token in plan["candidates"]}
        # Without candidates, which a grammar can bring about, nothing is left.
        plan["restricted"] = rng.random() < (0.5 if plan["candidates"] else 0.05)
        if plan["allowed"] is not None and plan["candidates"]:
            plan["allowed"] |= set(plan["candidates"])
        plan["budget"] = None
    tables = lay_out(plans, vocabulary)
    made, torchs = fused_step(logits, tables, block=BLOCK), step_reference.fused_step(logits, tables)
    compared = 0
    for i, plan in enumerate(plans):
        with np.errstate(all="ignore"):
            final, token, margin, guided = expected_step(logits, plan)
        if not np.isfinite(final).any():
            assert made.logprobs[i].isnan() and torchs.logprobs[i].isnan()
            continue
        if margin < CLOSE:
            continue
        compared += 1
        for ours in (made.guided, torchs.guided) if i % 2 == 0 else ():
            scores = ours[i // 2].double().cpu()
            torch.testing.assert_close(scores, torch.from_numpy(guided), rtol=2e-6, atol=BOUND)
        assert int(made.tokens[i]) == int(torchs.tokens[i]) == token, plan
        exact = torch.log_softmax(torch.from_numpy(final), -1)
        assert float(made.logprobs[i]) == pytest.approx(float(exact[token]), rel=2e-6, abs=BOUND), plan
        count = min(plan["wanted"], int(np.isfinite(final).sum()))
        others = made.other_tokens[i, :count].cpu()
        assert made.other_tokens[i, plan["wanted"] :].tolist() == [-1] * (made.other_tokens.shape[1] - plan["wanted"])
        values = made.other_logprobs[i, :count].double().cpu()
        torch.testing.assert_close(values, exact.sort(descending=True).values[:count], rtol=2e-6, atol=BOUND)
        torch.testing.assert_close(values, exact[others], rtol=2e-6, atol=BOUND)
    assert compared >= 2


def test_budgets_are_kept_before_masks(rng: random.Random) -> None:
    """Between candidate values and masks; and whatever else the batch holds."""
    logits = torch.randn(ROWS, 2 * BLOCK - 3, device=DEVICE) * 4
    plans = [draw_plan(rng, 2 * BLOCK - 3) for _ in range(PLANS)]
    base, nats = rng.randrange(ROWS), rng.choice([0.01, 0.3])
    for plan in plans[::2]:
        plan["budget"] = (base, nats)
    tables = lay_out(plans, 2 * BLOCK - 3)
    for plain in (tables, replace(tables.changed(base=-1), masks=False)):
        made, torchs = fused_step(logits, plain, block=BLOCK), step_reference.fused_step(logits, plain)
        torch.testing.assert_close(made.guided, torchs.guided, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.logprobs, torchs.logprobs, rtol=1e-4, atol=1e-4)
        for scores in (guided_scores(logits, plain, block=BLOCK), step_reference.guided_scores(logits, plain)):
            torch.testing.assert_close(scores[::2], torchs.guided, rtol=1e-4, atol=1e-4)
    final, start = (torch.log_softmax(x.double(), -1) for x in (torchs.guided, logits[base]))
    moved = (final.exp() * (final - start)).sum(-1)
    assert (moved <= nats * 1.001).all() and moved.max() > nats * 0.99


def test_plain_rows_take_the_same_way_alone_and_together(rng: random.Random) -> None:
    """Nothing but linear sums: the leaner kernels; and a row's token and logprob do not depend on the others."""
    logits = torch.randn(6, 2 * BLOCK, device=DEVICE)
    source_rows = torch.randint(0, 6, (5, 2)).to(DEVICE)
    weights = torch.tensor([[1.0, 0.5]] * 4 + [[1.0, 0.0]], device=DEVICE)
    tables = plain_tables(source_rows, weights).changed(temperature=torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), wanted=2)
    together = fused_step(logits, replace(tables, wanted=2), block=BLOCK)
    full = fused_step(logits, replace(tables, wanted=2, linear=False, masks=True), block=BLOCK)
    expected = step_reference.fused_step(logits, replace(tables, wanted=2))
    assert torch.equal(together.tokens, expected.tokens) and torch.equal(full.tokens, expected.tokens)
    assert torch.equal(together.logprobs, full.logprobs)
    assert torch.equal(together.other_tokens, expected.other_tokens)
    torch.testing.assert_close(together.logprobs, expected.logprobs, rtol=1e-6, atol=4e-6)
    for i in (1, 4):
        one = {
            name: value[i : i + 1] for name, value in vars(tables).items() if isinstance(value, Tensor) and len(value)
        }
        alone = fused_step(logits, replace(tables, wanted=2, **one), block=BLOCK)
        assert torch.equal(alone.tokens, together.tokens[i : i + 1])
        assert torch.equal(alone.logprobs, together.logprobs[i : i + 1])


def test_broken_sequences_do_not_touch_the_others(rng: random.Random) -> None:
    logits = torch.randn(4, 100, device=DEVICE)
    logits[1], logits[2], logits[3, ::2] = torch.nan, -torch.inf, -torch.inf
    tables = plain_tables(torch.arange(4, device=DEVICE)[:, None], torch.ones(4, 1, device=DEVICE))
    tables = replace(tables.changed(temperature=torch.tensor([1.0, 1.0, 0.0, 1.0]), top_p=0.9, wanted=3), wanted=3)
    made = fused_step(logits, replace(tables, truncates=True), block=BLOCK)
    expected = step_reference.fused_step(logits, tables)
    assert made.logprobs[1:3].isnan().all() and ((made.tokens >= 0) & (made.tokens < 100)).all()
    for i in (0, 3):
        assert made.tokens[i] == expected.tokens[i] and torch.equal(made.other_tokens[i], expected.other_tokens[i])
        assert float(made.logprobs[i]) == pytest.approx(float(expected.logprobs[i]), abs=1e-5)
    assert int(made.tokens[3]) % 2 == 1


def test_no_sequences() -> None:
    none = plain_tables(torch.empty(0, 2, dtype=torch.int64, device=DEVICE), torch.empty(0, 2, device=DEVICE))
    made = fused_step(torch.randn(3, 50, device=DEVICE), none)
    assert made.tokens.shape == made.logprobs.shape == (0,)
