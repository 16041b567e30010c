"""What a finished family says about itself to people: a README."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ladle.recipes.config import Recipe
from ladle.recipes.markdown import table
from ladle.recipes.training.evaluate import SampledAnswer
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.value_fit import ValueFit


@dataclass(frozen=True)
class CardFacts:
    """What is known once a family is trained.

    Attributes:
        recipe: what it was made from.
        scale: what standardised the rewards.
        candidates: size of the pool.
        prompts: number of training prompts.
        explicit: whether explicit values were trained.
    """

    recipe: Recipe
    scale: Scale
    candidates: int
    prompts: int
    explicit: bool


@dataclass(frozen=True)
class Measured:
    """What a family was measured to do.

    Attributes:
        rows: of `evaluate.summarise`.
        fronts: of `evaluate.front`, by method.
        examples: (setting, answer), all to the same prompt.
        value_fits: of the explicit values, by name.
        split: which prompts were judged.
    """

    rows: Sequence[Mapping[str, object]]
    fronts: Mapping[str, Mapping[str, float]]
    examples: Sequence[tuple[str, SampledAnswer]]
    value_fits: Mapping[str, Sequence[ValueFit]] = field(default_factory=dict)
    split: str = "test"


_BUILT_IN: dict[str, Callable[[Recipe], str]] = {
    "positive": lambda recipe: "sum of VADER valences in the text, clipped to [-6, 12].",
    "simple": lambda recipe: (
        "Flesch reading ease of the text, clipped to [0, 120], as if ten words of plain prose stood beside it."
    ),
    "concise": lambda recipe: (
        f"-(n - {recipe.concise_target}) for n >= {recipe.concise_target} tokens, -2.5 ({recipe.concise_target} - n) "
        f"below, and -6 if the text stops mid-sentence; {recipe.pool.max_tokens} tokens without an end give "
        f"{recipe.concise_target - recipe.pool.max_tokens - 6}."
    ),
}


def write_card(facts: CardFacts, out: Path, measured: Measured | None = None) -> None:
    """Writes `out/README.md`.

    Args:
        facts: of the training.
        out: the family's folder.
        measured: of the evaluation; None where there was none.
    """
    parts = [_what(facts, out), _rewards(facts), _training(facts)]
    if facts.explicit:
        parts.append(_values(facts))
    parts.append(_measured(facts, measured) if measured else "## Measured\nNothing yet: `ladle sweep` measures it.")
    if measured and measured.value_fits:
        parts.append(_fits(facts, measured))
    if measured:
        parts.append(_examples(measured))
    parts.append(_limits(facts))
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _what(facts: CardFacts, out: Path) -> str:
    recipe = facts.recipe
    names = recipe.objectives
    traded = " for ".join(f"*{name}*" for name in names)
    mixed = f"beta {recipe.soup.beta}" if recipe.soup.matrix is None else f"{recipe.matrix().tolist()}"
    explicit = ""
    if facts.explicit:
        explicit = "; `explicit-*` have a scalar head that predicts an answer's final reward from its beginning"
    routing = ""
    if recipe.experts is not None and (out / "adapters" / "router").is_dir():
        routing = "\n\nThe family also has experts and a router: [ROUTING.md](ROUTING.md)."
    return f"""# The family `{recipe.name}`

{(3 if facts.explicit else 2) * len(names)} LoRA adapters of {recipe.base_name}
that let one model trade {traded} at inference time.
`bone-*` are backbones for Bone Soup (arXiv 2502.10762), trained on rewards mixed by B ({mixed});
`policy-*` were trained on one reward each, for Rewarded Soups (arXiv 2306.04488). Values for guided decoding:
`implicit-*` are the policies once more, taken against the base{explicit}.{routing}

Made by `ladle train` from the recipe `{recipe.name}`, with {_versions()}. Seeds: {recipe.pool.seed} (pool),
{recipe.adapter.seed} (the one initialisation that all members share), {(recipe.online or recipe.dpo).seed} (training),
{recipe.value_adapter.seed} and {recipe.value.seed} (values), {recipe.evaluation.seed} (evaluation, bootstrap)."""


def _versions() -> str:
    from importlib.metadata import version

    packages = ", ".join(f"{name} {version(name)}" for name in ("trl", "peft", "transformers", "torch"))
    return f"{packages} and Python {platform.python_version()}"


def _rewards(facts: CardFacts) -> str:
    recipe = facts.recipe
    lines = []
    for name in recipe.objectives:
        given = recipe.rewards.get(name)
        built_in = _BUILT_IN.get(given or name)
        lines.append(f"- `{name}`: {built_in(recipe) if built_in else f'`{given}`.'}")
    scales = "; ".join(
        f"{name} mean {m:.3f}, standard deviation {s:.3f}"
        for name, m, s in zip(recipe.objectives, facts.scale.mean, facts.scale.std, strict=True)
    )
    return "## Rewards\n" + "\n".join(lines) + f"\n\nFor training they are standardised on the pool: {scales}."


def _training(facts: CardFacts) -> str:
    recipe, pool, adapter = facts.recipe, facts.recipe.pool, facts.recipe.adapter
    if recipe.online is None:
        dpo = recipe.dpo
        how = (
            f"DPO with beta {dpo.beta} and {dpo.winner_nll} times the winners' mean negative log-likelihood, top "
            f"{dpo.pairs} against bottom {dpo.pairs} a prompt, epochs: {dpo.epochs}, learning rate {dpo.learning_rate}"
        )
    else:
        online = recipe.online
        how = (
            f"{recipe.algorithm.upper()} with beta {online.beta}, {online.generations} answers a prompt and "
            f"{online.prompts_per_step} prompts a step, epochs: {online.epochs}, learning rate {online.learning_rate}"
        )
    further = f"\nFurther arguments of TRL: {recipe.trl}." if recipe.trl else ""
    return f"""## Training
{facts.candidates} candidate answers to {facts.prompts} prompts (temperature {pool.temperature}, top-k {pool.top_k},
top-p {pool.top_p}, at most {pool.max_tokens} tokens; plain, under {len(pool.styles)} style system prompts, cut short).
{how}, rank {adapter.rank}, alpha {adapter.alpha}, on {", ".join(adapter.targets)}.
Factors are stored in float16.{further}"""


def _values(facts: CardFacts) -> str:
    value, adapter = facts.recipe.value, facts.recipe.value_adapter
    if value.td_lambda == 1.0:
        target_kind = "every prefix regressed (the loss of CD-FUDGE, arXiv 2310.17022)"
    else:
        target_kind = f"lambda-returns (lambda {value.td_lambda}, no discount; as VAS, arXiv 2405.06639)"
    return f"""Explicit values: {target_kind} on the standardised reward of one objective,
{value.answers} answers a prompt and pass, passes: {value.epochs}, learning rate {value.learning_rate} (head:
{value.head_learning_rate}), rank {adapter.rank}, alpha {adapter.alpha}, on {", ".join(adapter.targets)}.
Heads start at zero and are stored in float32; they read the last hidden state after the final norm."""


def _measured(facts: CardFacts, measured: Measured) -> str:
    objectives, evaluation = facts.recipe.objectives, facts.recipe.evaluation
    columns = ["method", *(f"mu {name}" for name in objectives), *objectives]
    lines = [[*columns, "tokens", "degenerate", "perplexity under the base", "mu·z"]]
    for row in measured.rows:
        intervals = [f"{row[name]} [{row[f'{name}_low']}, {row[f'{name}_high']}]" for name in objectives]
        cells = [row["method"], *(row[f"mu_{name}"] for name in objectives), *intervals, row["tokens"]]
        cells += [f"{100 * float(str(row['degenerate'])):.1f} %", row["base_perplexity"], row["mu_z"]]
        lines.append([str(cell) for cell in cells])
    fronts = [
        f"- `{method}`: {values['hypervolume']:.2f} [{values['low']:.2f}, {values['high']:.2f}]; tau "
        + ", ".join(f"{name} {values[f'tau_{i}']:.2f}" for i, name in enumerate(objectives))
        for method, values in measured.fronts.items()
    ]
    return f"""## Measured
{evaluation.samples} samples for each {measured.split} prompt (which training never saw), temperature
{evaluation.temperature}, top-p {evaluation.top_p}, at most {facts.recipe.pool.max_tokens} tokens, the same seeds
for every row.
Intervals: 95 % bootstrap over prompts. *Degenerate*: under 5 tokens, a 4-token sequence three times, or under half of
the tokens distinct. mu·z: standardised rewards weighted by the preference. Full numbers: `evaluation.csv`.

{table(lines)}

Hypervolume of the mean standardised rewards above -1 in each objective over these preferences, and Kendall's tau
between a weight and its reward:

{chr(10).join(fronts)}"""


def _fits(facts: CardFacts, measured: Measured) -> str:
    lines = [["value", "after", "answers", "explained", "correlation"]]
    for name, points in measured.value_fits.items():
        for fit in points:
            explained = f"{fit.explained:.2f} [{fit.explained_low:.2f}, {fit.explained_high:.2f}]"
            correlation = f"{fit.correlation:.2f} [{fit.correlation_low:.2f}, {fit.correlation_high:.2f}]"
            lines.append([name, fit.after, str(fit.answers), explained, correlation])
    return f"""### Explicit values
Final standardised reward against its prediction after a part of the answer, on the pool's candidates for prompts of
{facts.recipe.value.held_out} topics that the values never saw.
*Explained*: 1 - sum (r - V)² / sum (r - mean r)², at most 1, 0 for a
constant guess of these answers' own mean, below 0 for worse than that. At a share of the tokens, longer beginnings
belong to longer answers, which alone may go with the reward; after a number of tokens, where only longer answers
count, it does not. Intervals: 95 % bootstrap over prompts. All figures: `values.csv`. How well guiding with these
values steers was not measured.

{table(lines)}"""


def _examples(measured: Measured) -> str:
    samples = [f"- `{label}`: {' '.join(answer.text.split())}" for label, answer in measured.examples]
    prompt = measured.examples[0][1].prompt
    heading = f"The first sample of the first {measured.split} prompt under every setting, not picked: *{prompt}*"
    return f"## How it sounds\n{heading}\n\n{chr(10).join(samples)}"


def _limits(facts: CardFacts) -> str:
    return f"""## Limits
- One training seed; the rewards that train also judge.
- Trained on answers of at most {facts.recipe.pool.max_tokens} tokens to single questions under the model's default
  system prompt.
- The licence of the base holds for what is made of it."""
