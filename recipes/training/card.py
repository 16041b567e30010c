"""What a finished family says about itself: family.toml for the server and a README for people."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ladle.recipes.config import Recipe
from ladle.recipes.markdown import table
from ladle.recipes.training.evaluate import Answer
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.value_fit import Fit


def write_manifest(recipe: Recipe, out: Path) -> None:
    """Writes `out/family.toml`; the adapters are expected in `out/adapters/NAME`. Experts and router are listed once
    they are all there, whichever of the recipe's commands made them; so are explicit values and oracles."""
    lines = [
        f'name = "{recipe.name}"',
        f"objectives = {_list(recipe.objectives)}",
        *([f'chat_template = "{recipe.chat_template.name}"'] if recipe.chat_template else []),
        "",
        *_sampling(recipe),
        "[base]",
        f'model = "{recipe.base}"',
        "",
        "[soup]",
        f"beta = {recipe.soup.beta}",
    ]
    if recipe.soup.extrapolation:
        lines.append(
            "extrapolation = { " + ", ".join(f"{name} = {k}" for name, k in recipe.soup.extrapolation.items()) + " }"
        )
    for objective, row in zip(recipe.objectives, recipe.matrix().tolist(), strict=True):
        weights = "[" + ", ".join(f"{weight:.12g}" for weight in row) + "]"
        lines += [
            "",
            "[[backbones]]",
            f'name = "bone-{objective}"',
            f'path = "adapters/bone-{objective}"',
            f"rewards = {weights}",
        ]
    for objective in recipe.objectives:
        lines += [
            "",
            "[[policies]]",
            f'name = "policy-{objective}"',
            f'path = "adapters/policy-{objective}"',
            f'objective = "{objective}"',
        ]
    for objective in recipe.objectives:
        lines += [
            "",
            "[[values]]",
            f'name = "implicit-{objective}"',
            'kind = "implicit"',
            f'path = "adapters/policy-{objective}"',
            f'objective = "{objective}"',
        ]
    for name, mix in recipe.oracle_members().items():
        if (out / "adapters" / name).is_dir():
            row = "[" + ", ".join(f"{weight:.12g}" for weight in mix) + "]"
            lines += ["", "[[policies]]", f'name = "{name}"', f'path = "adapters/{name}"', f"rewards = {row}"]
    for name, index in recipe.values().items():
        if not (out / "adapters" / name).is_dir():
            continue
        lines += [
            "",
            "[[values]]",
            f'name = "{name}"',
            'kind = "explicit"',
            f'path = "adapters/{name}"',
            f'objective = "{recipe.objectives[index]}"',
        ]
    if recipe.experts is not None and (out / "adapters" / "router").is_dir():
        for domain in recipe.experts.samples:
            lines += ["", "[[experts]]", f'name = "{domain}"', f'path = "adapters/expert-{domain}"']
        lines += ["", "[router]", 'path = "adapters/router"']
    for name, preference in recipe.presets.items():
        weights = ", ".join(f"{objective} = {weight}" for objective, weight in preference.items())
        lines += ["", f"[presets.{name}]", f"preference = {{ {weights} }}"]
    out.mkdir(parents=True, exist_ok=True)
    if recipe.chat_template is not None:
        shutil.copyfile(recipe.chat_template, out / recipe.chat_template.name)
    (out / "family.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sampling(recipe: Recipe) -> list[str]:
    """``[sampling]`` and the tables below it, each with an empty line behind it."""
    if recipe.sampling is None:
        return []
    tables = {"sampling": recipe.sampling} | {f"sampling.methods.{n}": t for n, t in recipe.sampling.methods.items()}
    return [
        line
        for name, table in tables.items()
        for line in (f"[{name}]", *(f"{field} = {value}" for field, value in table.given().items()), "")
    ]


_REWARDS: dict[str, Callable[[Recipe], str]] = {
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


def _own(recipe: Recipe) -> str:
    return "a function of the recipe's own."


def write_card(
    recipe: Recipe,
    out: Path,
    rows: Sequence[Mapping[str, object]],
    fronts: Mapping[str, Mapping[str, float]],
    scale: Scale,
    examples: Sequence[tuple[str, Answer]],
    value_fits: Mapping[str, Sequence[Fit]],
    *,
    candidates: int,
    prompts: int,
    split: str,
) -> None:
    """Writes `out/README.md` from what was measured.

    Args:
        rows: of `evaluate.summarise`.
        fronts: of `evaluate.front`, by method.
        scale: what standardised the rewards.
        examples: (setting, answer), all to the same prompt.
        value_fits: of the explicit values, by name.
        candidates: size of the pool.
        prompts: number of training prompts.
        split: which prompts were judged.
    """
    objectives = recipe.objectives
    evaluation, pool, dpo, adapter = recipe.evaluation, recipe.pool, recipe.dpo, recipe.adapter
    head = [
        "method",
        *(f"mu {name}" for name in objectives),
        *objectives,
        "tokens",
        "degenerate",
        "perplexity under the base",
        "mu·z",
    ]
    measured = [head]
    for row in rows:
        intervals = [f"{row[name]} [{row[f'{name}_low']}, {row[f'{name}_high']}]" for name in objectives]
        cells = [row["method"], *(row[f"mu_{name}"] for name in objectives), *intervals]
        measured.append(
            [
                str(cell)
                for cell in (
                    *cells,
                    row["tokens"],
                    f"{100 * float(str(row['degenerate'])):.1f} %",
                    row["base_perplexity"],
                    row["mu_z"],
                )
            ]
        )
    scales = "; ".join(
        f"{name} mean {m:.3f}, standard deviation {s:.3f}"
        for name, m, s in zip(objectives, scale.mean, scale.std, strict=True)
    )
    front_lines = [
        f"- `{method}`: {values['hypervolume']:.2f} [{values['low']:.2f}, {values['high']:.2f}]; tau "
        + ", ".join(f"{name} {values[f'tau_{i}']:.2f}" for i, name in enumerate(objectives))
        for method, values in fronts.items()
    ]
    value = recipe.value
    if value.td_lambda == 1.0:
        target_kind = "every prefix regressed (the loss of CD-FUDGE, arXiv 2310.17022)"
    else:
        target_kind = f"lambda-returns (lambda {value.td_lambda}, no discount; as VAS, arXiv 2405.06639)"
    fits = [["value", "after", "answers", "explained", "correlation"]]
    for name, points in value_fits.items():
        for fit in points:
            explained = f"{fit.explained:.2f} [{fit.explained_low:.2f}, {fit.explained_high:.2f}]"
            correlation = f"{fit.correlation:.2f} [{fit.correlation_low:.2f}, {fit.correlation_high:.2f}]"
            fits.append([name, fit.after, str(fit.answers), explained, correlation])
    samples = [f"- `{label}`: {' '.join(answer.text.split())}" for label, answer in examples]
    traded = " for ".join(f"*{name}*" for name in objectives)
    targets = ", ".join(adapter.targets)
    limit = pool.max_tokens
    rewards = "\n".join(f"- `{name}`: {_REWARDS.get(name, _own)(recipe)}" for name in objectives)
    routing = ""
    if recipe.experts is not None and (out / "adapters" / "router").is_dir():
        routing = "\n\nThe family also has experts and a router: [ROUTING.md](ROUTING.md)."
    text = f"""# The family `{recipe.name}`

{3 * len(objectives)} LoRA adapters of {recipe.base_name} that let one small model trade {traded} at inference time.
`bone-*` are backbones for Bone Soup (arXiv 2502.10762), trained on rewards mixed by B (beta {recipe.soup.beta});
`policy-*` were trained on one reward each, for Rewarded Soups (arXiv 2306.04488). Values for guided decoding:
`implicit-*` are the policies once more, taken against the base; `explicit-*` have a scalar head that predicts an
answer's final reward from its beginning.{routing}

Made by

```
python -m ladle.recipes.training.train --config {recipe.name} --out families/{recipe.name}
```

on one CPU thread in float32. All settings are in `recipes/configs/{recipe.name}.toml`. Seeds: {pool.seed} (pool),
{adapter.seed} (the one initialisation all members share), {dpo.seed} (order of training),
{evaluation.seed} (evaluation, bootstrap); explicit values: {recipe.value_adapter.seed} (initialisation), {value.seed}
(order of training, topics held out).

## Rewards
{rewards}

All are computed from the text alone. For training they are standardised on the pool: {scales}.

## Training
{candidates} candidate answers to {prompts} prompts (temperature {pool.temperature}, top-k {pool.top_k},
top-p {pool.top_p}, at most {limit} tokens; plain, under {len(pool.styles)} style system prompts, and cut short).
DPO with beta {dpo.beta} and {dpo.winner_nll} times the winner's mean negative log-likelihood, top {dpo.pairs} against
bottom {dpo.pairs} a prompt, epochs: {dpo.epochs}, learning rate {dpo.learning_rate}, rank {adapter.rank},
alpha {adapter.alpha}, on {targets}.
Factors are stored in float16.

Explicit values: {target_kind} on the standardised reward of one objective,
{value.answers} answers a prompt and pass, passes: {value.epochs}, learning rate {value.learning_rate} (head:
{value.head_learning_rate}), rank {recipe.value_adapter.rank}, alpha {recipe.value_adapter.alpha}, on
{", ".join(recipe.value_adapter.targets)}. Heads start at zero and are stored in float32; they read the last hidden
state after the final norm.

## Measured
{evaluation.samples} samples for each {split} prompt (topics that training never saw), temperature
{evaluation.temperature}, top-p {evaluation.top_p}, at most {limit} tokens, the same seeds for every row.
Intervals: 95 % bootstrap over prompts. *Degenerate*: under 5 tokens, a 4-token sequence three times, or under half of
the tokens distinct. mu·z: standardised rewards weighted by the preference. Full numbers: `evaluation.csv`.

{table(measured)}

Hypervolume of the mean standardised rewards above -1 in each objective over these preferences, and Kendall's tau
between a weight and its reward:

{chr(10).join(front_lines)}

### Explicit values
Final standardised reward against its prediction after a part of the answer, on the pool's candidates for prompts of
{value.held_out} topics that the values never saw. *Explained*: 1 - sum (r - V)² / sum (r - mean r)², at most 1, 0 for a
constant guess of these answers' own mean, below 0 for worse than that. At a share of the tokens, longer beginnings
belong to longer answers, which alone goes with the reward; after a number of tokens, where only longer answers count,
it does not. How `concise` an answer gets is decided by its end, and shortened candidates end where a draw said, so a
beginning can tell little of it. Intervals: 95 % bootstrap over prompts. All figures: `values.csv`. How well guiding
with these values steers was not measured.

{table(fits)}

## How it sounds
The first sample of the first {split} prompt under every setting, not picked: *{examples[0][1].prompt}*

{chr(10).join(samples)}

## Limits
- A 135-million-parameter model, dequantised from four bits: what is shown is control of *style*. Its answers are often
  wrong or incoherent, with or without adapters.
- One training seed; the rewards that train also judge. VADER counts words, it does not read: sarcasm, or a negation
  in another sentence, escapes it.
- Trained on answers of at most {limit} tokens to single questions in English under the model's default system prompt.

## Licences
Base: SmolLM2-135M-Instruct by Hugging Face, Apache-2.0. Adapters, prompts and recipe: Apache-2.0, as the rest of this
repository. The lexicon behind `positive` is vaderSentiment, MIT; nothing of it is included.
"""
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(text, encoding="utf-8")


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
