"""Judges experts and router on held-out questions: each alone, mixed by sequence, by parameters and by token.

`python -m ladle.recipes.experts.route_eval --config demo --out families/demo`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ladle.recipes.base_model import load_base
from ladle.recipes.domains.domains import DomainQuestion, is_right, questions
from ladle.recipes.experts.route import RouteWorkshop, needed
from ladle.recipes.experts.routed import Routed, routed_greedy, speakers
from ladle.recipes.experts.router_pairs import store_answers, stored_answers
from ladle.recipes.experts.router_training import load_trained_head
from ladle.recipes.experts.routing_card import write_routing_card
from ladle.recipes.routing_config import RoutingEvaluationConfig
from ladle.recipes.scoring import Encoded, predictions
from ladle.recipes.soup import load_members, merged
from ladle.recipes.text_metrics import bootstrap_mean
from ladle.recipes.training.evaluate import write_csv
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import fingerprint
from ladle.recipes.training.value import hidden_size

ROUTER = "router"


@dataclasses.dataclass(frozen=True)
class RoutingTrial:
    """Held-out questions, and the members that answer them: experts in the order of the router's head, and the
    router."""

    workshop: RouteWorkshop
    config: RoutingEvaluationConfig
    folders: dict[str, Path]
    questions: list[DomainQuestion]

    @classmethod
    def open(cls, workshop: RouteWorkshop, family: Path, split: str) -> RoutingTrial:
        """Takes the members from a family's folder."""
        config = needed(workshop.recipe.routing_evaluation, "routing_evaluation")
        domains = list(workshop.experts.samples)
        asked = [question for domain in domains for question in questions(domain, split, config.prompts, config.seed)]
        names = [*(f"expert-{domain}" for domain in domains), ROUTER]
        return cls(workshop, config, {name: family / "adapters" / name for name in names}, asked)

    @property
    def experts(self) -> list[str]:
        return [name for name in self.folders if name != ROUTER]

    def _file(self, method: str, members: Sequence[str]) -> Path:
        """Where answers are kept that depend on these members' weights."""
        files = [path for name in members for path in sorted(self.folders[name].glob("*.safetensors"))]
        weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        prompts = [question.task.prompt for question in self.questions]
        key = fingerprint(method, self.workshop.recipe.base, weights, prompts, self.config.max_tokens)
        return self.workshop.folder / f"judged-{key}.jsonl"

    def mixed(self, coefficients: Mapping[str, float]) -> list[list[int]]:
        """Greedy answers of the base with members merged into it."""
        config = self.config
        return stored_answers(
            self.workshop.base,
            load_members(self.workshop.base, {name: self.folders[name] for name in coefficients}),
            coefficients,
            self.questions,
            config.max_tokens,
            config.batch_rows,
            self._file(json.dumps(dict(coefficients)), list(coefficients)),
        )

    def selected(self, answers: Mapping[str, Sequence[Sequence[int]]]) -> list[list[int]]:
        """Sequence-level selection: of the experts' own whole answers, the one whose mean log-probability a token is
        greatest under the router's language model. The paper's baseline asks a reward model; a family has none, so the
        router judges (our reconstruction)."""
        base = self.workshop.base
        members = load_members(base, {ROUTER: self.folders[ROUTER]})
        chosen = []
        with merged(base, members, {ROUTER: 1.0}), torch.inference_mode():
            for number, question in enumerate(self.questions):
                prompt = tuple(base.prompt_ids(question.task.prompt))
                candidates = [list(answers[expert][number]) for expert in self.experts]
                predicted = predictions(base.model, [Encoded(prompt, tuple(answer)) for answer in candidates])
                logprobs = predicted.logprobs()
                means = [float(logprobs[predicted.rows == row].mean()) for row in range(len(candidates))]
                chosen.append(candidates[int(np.argmax(means))])
        return chosen

    def routed(self, complement: float) -> list[Routed]:
        """Greedy answers with the router choosing an expert at every token."""
        file = self._file(f"routed {complement}", list(self.folders))
        if not file.exists():
            decoded = decode_routed(self.workshop, self.folders, self.questions, self.config, complement)
            store_answers([part for answer in decoded for part in (answer.tokens, answer.experts)], file)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [Routed(tokens, experts) for tokens, experts in zip(rows[::2], rows[1::2], strict=True)]


def decode_routed(
    workshop: RouteWorkshop,
    folders: Mapping[str, Path],
    asked: Sequence[DomainQuestion],
    config: RoutingEvaluationConfig,
    complement: float,
) -> list[Routed]:
    """Greedy answers of FusionRoute. Everything about how they are decoded is in here.

    Args:
        folders: experts in the order of the head's rows, then the router under "router".
        complement: weight of the router's log-probabilities.
    """
    base, experts = workshop.base, [name for name in folders if name != ROUTER]
    head = load_trained_head(folders[ROUTER], hidden_size(base), len(experts))
    prompts = [base.prompt_ids(question.task.prompt) for question in asked]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Routed] = {}
    with speakers(base, folders) as model:
        for start in range(0, len(order), config.batch_rows):
            chunk = order[start : start + config.batch_rows]
            decoded = routed_greedy(
                model,
                ROUTER,
                experts,
                head,
                [prompts[index] for index in chunk],
                eos=base.eos,
                max_tokens=config.max_tokens,
                complement=complement,
            )
            answers.update(zip(chunk, decoded, strict=True))
    return [answers[index] for index in range(len(prompts))]


def judged(judge: RoutingTrial) -> list[dict[str, object]]:
    """One row a method and domain, and one a method over all domains.

    Returns:
        rows with "method", "domain", "questions", "accuracy" (share of right answers), "low" and "high" (95 %
        bootstrap over questions), "tokens" (mean length of an answer), and "share_EXPERT" for routed methods: the
        share of tokens at which an expert was chosen.
    """
    experts, count = judge.experts, len(judge.experts)
    answers = {"base": judge.mixed({})}
    for name in experts:
        answers[name] = judge.mixed({name: 1.0})
    answers["router alone"] = judge.mixed({ROUTER: 1.0})
    answers["sequence selection"] = judge.selected(answers)
    answers["task arithmetic, scale 1"] = judge.mixed(dict.fromkeys(experts, 1.0))
    answers[f"task arithmetic, scale 1/{count}"] = judge.mixed(dict.fromkeys(experts, 1.0 / count))
    chosen: dict[str, list[Routed]] = {}
    for method, complement in (("routing alone", 0.0), ("fusion_route", 1.0)):
        chosen[method] = judge.routed(complement)
        answers[method] = [answer.tokens for answer in chosen[method]]
    return [row for method, decoded in answers.items() for row in _rows(judge, method, decoded, chosen.get(method))]


def _rows(
    judge: RoutingTrial, method: str, answers: Sequence[Sequence[int]], routed: Sequence[Routed] | None
) -> list[dict[str, object]]:
    base, config = judge.workshop.base, judge.config
    right = np.array(
        [is_right(q, base.text(list(tokens))) for q, tokens in zip(judge.questions, answers, strict=True)], dtype=float
    )
    rows = []
    for domain in (*dict.fromkeys(question.domain for question in judge.questions), "all"):
        picked = [i for i, question in enumerate(judge.questions) if domain in ("all", question.domain)]
        mean, low, high = bootstrap_mean(right[picked][:, None], draws=config.bootstrap, seed=config.seed)
        row: dict[str, object] = {
            "method": method,
            "domain": domain,
            "questions": len(picked),
            "accuracy": f"{mean:.3f}",
            "low": f"{low:.3f}",
            "high": f"{high:.3f}",
            "tokens": f"{np.mean([len(answers[i]) for i in picked]):.1f}",
        }
        spoken = [expert for i in picked for expert in routed[i].experts] if routed is not None else []
        for number, name in enumerate(judge.experts):
            row[f"share_{name}"] = f"{spoken.count(number) / len(spoken):.3f}" if spoken else ""
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Writes routing.csv and ROUTING.md, or prints JSON as well; returns the exit status."""
    description = "Judge experts and router on held-out questions. What the work folder has is not decoded again."
    parser = recipe_parser("experts.route_eval", description, out=" that the recipe made")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="questions that are judged")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and write nothing")
    arguments, recipe = recipe_arguments(parser, argv, "experts", "router")
    workshop = RouteWorkshop(recipe, load_base(recipe.base), arguments.work)
    rows = judged(RoutingTrial.open(workshop, arguments.out, arguments.split))
    if arguments.json:
        print(json.dumps(rows))
        return 0
    write_csv(rows, arguments.out / "routing.csv")
    write_routing_card(recipe, arguments.out, rows, arguments.split)
    for row in rows:
        print("  ".join(str(value) for value in row.values() if value != ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
