import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.members.router_head import ROUTER_HEAD
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import Recipe, load_recipe
from ladle.recipes.domains.domains import questions
from ladle.recipes.experts import route_eval
from ladle.recipes.experts.expert import encode
from ladle.recipes.experts.expert_views import ViewedAnswer, informative, seen_by
from ladle.recipes.experts.route import RouteWorkshop, make_routing
from ladle.recipes.experts.routed import combined, routed_greedy, speakers
from ladle.recipes.experts.router_pairs import greedy_answers, pairs_of
from ladle.recipes.experts.router_training import (
    RouterTrainer,
    SeenPair,
    complementary_loss,
    routed_logprobs,
    routing_loss,
)
from ladle.recipes.rewards import Reward
from ladle.recipes.scoring import Encoded
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training import recipe_arguments
from ladle.recipes.training.lora import new_adapter, save_adapter
from ladle.recipes.training.train import Workshop, make_family
from ladle.recipes.training.value import hidden_size


@pytest.fixture
def routed(recipe: Recipe) -> Recipe:
    """The shipped recipe with its experts and router as small as a random model needs them."""
    assert recipe.expert_adapter is not None and recipe.experts is not None
    assert recipe.router is not None and recipe.routing_evaluation is not None
    return replace(
        recipe,
        expert_adapter=replace(recipe.expert_adapter, targets=("q_proj", "down_proj")),
        experts=replace(recipe.experts, samples={"math": 12, "json": 8, "chat": 8}, batch=4, learning_rate=2e-2),
        router=replace(
            recipe.router, samples=5, batch=4, pairs=3, pair_samples=4, pairs_per_step=2, max_tokens=6, batch_rows=5
        ),
        routing_evaluation=replace(recipe.routing_evaluation, prompts=3, max_tokens=6, batch_rows=4, bootstrap=20),
    )


def test_routing_loss_and_its_gradient_equal_the_formula(random: np.random.Generator) -> None:
    scores, logprobs = random.normal(size=(9, 3)), -random.exponential(size=(9, 3))
    where = random.uniform(size=9) < 0.5
    where[0] = True
    expected, gradient = 0.0, np.zeros_like(scores)
    for t in np.flatnonzero(where):
        weights = [np.exp(w) / sum(np.exp(v) for v in scores[t]) for w in scores[t]]
        mixed = sum(a * np.exp(lp) for a, lp in zip(weights, logprobs[t], strict=True))
        expected -= np.log(mixed) / where.sum()
        for i in range(3):  # d -log(sum a p) / d w_i = a_i - a_i p_i / mixed
            gradient[t, i] = (weights[i] - weights[i] * np.exp(logprobs[t, i]) / mixed) / where.sum()
    tensor = torch.tensor(scores, requires_grad=True)
    loss = routing_loss(tensor, torch.tensor(logprobs), torch.tensor(where))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-8, atol=1e-12)
    assert float(routing_loss(tensor, torch.tensor(logprobs), torch.zeros(9, dtype=torch.bool)).detach()) == 0.0


def test_complementary_loss_and_its_gradient_equal_the_formula(random: np.random.Generator) -> None:
    values = [torch.tensor(random.normal(size=6) * 5, requires_grad=True) for _ in range(5)]
    winner, loser, winner_reference, loser_reference, ratio = (v.detach().numpy() for v in values)
    beta = float(random.uniform(0.05, 1.0))
    expected, gradient = 0.0, np.zeros(6)
    for k in range(6):
        x = beta * (winner[k] - winner_reference[k] - loser[k] + loser_reference[k]) + beta * ratio[k]
        expected += np.log1p(np.exp(-x)) / 6
        gradient[k] = -beta / (1 + np.exp(x)) / 6
    loss = complementary_loss(*values, beta)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(values[0].grad, gradient, rtol=1e-8, atol=1e-14)  # type: ignore[arg-type]
    np.testing.assert_allclose(values[1].grad, -gradient, rtol=1e-8, atol=1e-14)  # type: ignore[arg-type]
    assert values[4].grad is None  # the experts' term only weighs the pair


def test_informative_positions_are_those_of_disagreement(random: np.random.Generator) -> None:
    best = random.integers(2, size=(20, 3))
    expected = [len(set(row)) > 1 for row in best.tolist()]
    assert informative(torch.tensor(best)).tolist() == expected
    assert not informative(torch.tensor(best[:, :1])).any()


def test_routed_logprobs_are_the_best_experts(random: np.random.Generator) -> None:
    scores, logprobs = random.normal(size=(8, 3)), random.normal(size=(8, 3))
    found = routed_logprobs(torch.tensor(scores), torch.tensor(logprobs)).tolist()
    assert found == [logprobs[t][max(range(3), key=lambda i, t=t: scores[t][i])] for t in range(8)]


def _write_adapters(base: LoadedBase, recipe: Recipe, names: list[str], folder: Path, seed: int) -> dict[str, Path]:
    """Random adapters, large enough to change what is said."""
    assert recipe.expert_adapter is not None
    folders = {}
    for number, name in enumerate(names):
        model = new_adapter(base, recipe.expert_adapter, "default")
        torch.manual_seed(seed + number)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        folders[name] = folder / name
        save_adapter(model, folders[name], "the base")
        model.unload()
    return folders


def test_experts_views_equal_a_forward_each_and_are_read_back(
    base: LoadedBase, routed: Recipe, tmp_path: Path, seed: int
) -> None:
    folders = _write_adapters(base, routed, ["a", "b"], tmp_path, seed)
    members = load_members(base, folders)
    items = [encode(base, question) for question in questions("json", "train", 5, seed)]
    files = {name: tmp_path / f"{name}.jsonl" for name in members}
    found = seen_by(base, members, items, 2, files)
    for column, name in enumerate(members):
        with merged(base, members, {name: 1.0}), torch.no_grad():
            for seen in found:
                ids = [*seen.item.prompt, *seen.item.answer]
                logits = base.model(torch.tensor([ids])).logits[0, len(seen.item.prompt) - 1 : -1].double()
                logprobs = logits.log_softmax(-1)[range(len(seen.item.answer)), list(seen.item.answer)]
                torch.testing.assert_close(seen.logprobs[:, column].double(), logprobs, rtol=1e-4, atol=1e-4)
                assert seen.best[:, column].tolist() == logits.argmax(-1).tolist()
    again = seen_by(base, members, items, 2, files)
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(found, again, strict=True))


def _seen(random: np.random.Generator) -> ViewedAnswer:
    prompt, answer = (tuple(random.integers(5, 300, size=n).tolist()) for n in (5, 4))
    return ViewedAnswer(
        Encoded(prompt, answer),
        torch.tensor(-random.exponential(size=(4, 3)), dtype=torch.float32),
        torch.tensor(random.integers(2, size=(4, 3))),
    )


def test_pairs_leave_the_head_and_samples_move_it(
    base: LoadedBase, routed: Recipe, tmp_path: Path, seed: int, random: np.random.Generator
) -> None:
    assert routed.expert_adapter is not None and routed.router is not None
    start = _write_adapters(base, routed, ["chat"], tmp_path, seed)["chat"]
    trainer = RouterTrainer(base, routed.expert_adapter, routed.router, 3, start, trained=False)
    # It starts as the expert.
    saved = load_file(str(start / "adapter_model.safetensors"))
    state = dict(trainer.model.named_parameters())
    for name, factor in saved.items():
        assert torch.equal(state[name.removesuffix(".weight") + ".default.weight"].half(), factor)

    right = _seen(random)
    pair = SeenPair(right, replace(_seen(random), item=replace(_seen(random).item, prompt=right.item.prompt)))
    torch.nn.init.normal_(trainer.head.weight)
    reference = trainer.totals([pair])
    trainer.preferred([pair], reference, 1.0)
    assert trainer.head.weight.grad is None
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainer.trunk)
    trainer.taught([right, pair.wrong], 1.0)
    assert trainer.head.weight.grad is not None
    anywhere = bool(torch.cat([right.informative, pair.wrong.informative]).any())
    assert (float(trainer.head.weight.grad.abs().sum()) > 0) == anywhere
    trainer.close()


def test_pairs_take_wrong_answers_of_experts_and_make_them_where_there_are_none(base: LoadedBase, seed: int) -> None:
    asked = questions("math", "train", 2, seed)
    right = [[*base.tokenizer(q.task.answer, add_special_tokens=False)["input_ids"], base.eos] for q in asked]
    wrong = [[*base.tokenizer("no idea", add_special_tokens=False)["input_ids"], base.eos] for _ in asked]
    answers = {"a": [right[0], wrong[1]], "b": [right[0], right[1]]}
    first, second = pairs_of(base, asked, answers, seed)
    assert list(second[1].answer) == wrong[1]
    assert list(first[0].answer) == right[0] and list(second[0].answer) == right[1]
    assert base.text(list(first[1].answer)) != asked[0].task.answer
    assert first[0].prompt == first[1].prompt == tuple(base.prompt_ids(asked[0].task.prompt))


def test_combined_scores_equal_the_formula(random: np.random.Generator) -> None:
    router, experts, scores = random.normal(size=(4, 9)), random.normal(size=(3, 4, 9)), random.normal(size=(4, 3))
    for complement in (0.0, 1.0, float(random.uniform())):
        found, chosen = combined(*map(torch.tensor, (router, experts, scores)), complement)
        for row in range(4):
            best = int(np.argmax(scores[row]))
            assert int(chosen[row]) == best
            expert = experts[best, row] - np.log(np.exp(experts[best, row]).sum())
            own = router[row] - np.log(np.exp(router[row]).sum())
            np.testing.assert_allclose(found[row].numpy(), complement * own + expert, rtol=1e-10, atol=1e-12)


def test_routed_decoding_equals_whole_forwards(base: LoadedBase, routed: Recipe, tmp_path: Path, seed: int) -> None:
    names = ["a", "b", "c", "router"]
    folders = _write_adapters(base, routed, names, tmp_path, seed)
    members = load_members(base, folders)
    head = torch.nn.Linear(hidden_size(base), 3, bias=False)
    torch.manual_seed(seed)
    torch.nn.init.normal_(head.weight)
    prompts = [base.prompt_ids(q.task.prompt) for q in questions("chat", "train", 3, seed)]
    with speakers(base, folders) as model:
        found = routed_greedy(
            model, "router", names[:3], head, prompts, eos=base.eos, max_tokens=7, complement=1.0
        )  # fmt: skip
    for prompt, answer in zip(prompts, found, strict=True):
        assert 1 <= len(answer.tokens) <= 7
        for t, (token, expert) in enumerate(zip(answer.tokens, answer.experts, strict=True)):
            ids, logprobs = torch.tensor([[*prompt, *answer.tokens[:t]]]), {}
            for name in names:
                with merged(base, members, {name: 1.0}), torch.no_grad():
                    output = base.model(ids, output_hidden_states=True)
                logprobs[name] = output.logits[0, -1].double().log_softmax(-1)
            scores = head(output.hidden_states[-1][0, -1]).tolist()  # the router comes last
            assert scores[expert] > max(scores) - 1e-3
            score = logprobs["router"] + logprobs[names[expert]]
            assert float(score.max() - score[token]) < 1e-3
    # Afterwards the base is as it was.
    assert greedy_answers(base, questions("chat", "train", 1, seed), 3, 1)
    assert not any("lora" in name for name, _ in base.model.named_parameters())


def test_experts_and_router_are_made_judged_and_not_made_again(
    base: LoadedBase, routed: Recipe, rewards: tuple[Reward, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "family", tmp_path / "work"
    make_family(Workshop(routed, base, rewards, work), out, None)
    workshop = RouteWorkshop(routed, base, work)
    make_routing(workshop, out)
    family = load_family(str(out))
    assert family.experts == ("math", "json", "chat")
    assert family.router is not None
    assert family.router.head.weight.shape == (3, hidden_size(base))
    assert float(family.router.head.weight.abs().sum()) > 0
    head = load_file(str(out / "adapters" / "router" / ROUTER_HEAD))
    assert {name: tensor.dtype for name, tensor in head.items()} == {"weight": torch.float32}

    files = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    make_routing(workshop, out)
    assert files == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    # The other command keeps the tables, and its card names them.
    make_family(Workshop(routed, base, rewards, work), out, "test")
    assert "[ROUTING.md](ROUTING.md)" in (out / "README.md").read_text()
    assert load_family(str(out)).experts == ("math", "json", "chat")

    rows = route_eval.judged(route_eval.RoutingTrial.open(workshop, out, "test"))
    assert [row["domain"] for row in rows[:4]] == ["math", "json", "chat", "all"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    assert methods[:4] == ["base", "expert-math", "expert-json", "expert-chat"]
    assert methods[-2:] == ["routing alone", "fusion_route"]
    assert len(rows) == 4 * len(methods) == 4 * 10
    for row in rows[-4:]:
        assert sum(float(str(row[f"share_expert-{d}"])) for d in ("math", "json", "chat")) == pytest.approx(1, abs=2e-3)
    with monkeypatch.context() as patch:  # all of it is read back
        patch.setattr(route_eval, "decode_routed", lambda *_: pytest.fail("decoded again"))
        assert json.dumps(route_eval.judged(route_eval.RoutingTrial.open(workshop, out, "test"))) == json.dumps(rows)

    config = tmp_path / "recipe.toml"
    monkeypatch.setattr(
        recipe_arguments, "load_recipe", lambda spec: routed if spec == str(config) else load_recipe(spec)
    )
    monkeypatch.setattr(route_eval, "load_base", lambda spec: base)
    assert route_eval.main(["--config", str(config), "--out", str(out), "--work", str(work)]) == 0
    found = list(csv.DictReader((out / "routing.csv").read_text().splitlines()))
    assert [row["accuracy"] for row in found] == [row["accuracy"] for row in rows]
    card = (out / "ROUTING.md").read_text()
    assert all(f"| {method} | " in card for method in methods)

    broken = out / "adapters" / "router" / ROUTER_HEAD
    save_file({"weight": torch.zeros(2, hidden_size(base))}, str(broken))
    with pytest.raises(FamilyError, match="router_head"):
        route_eval.RoutingTrial.open(workshop, out, "test").routed(1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("math = 2000", "poems = 2000", "experts.samples: 'poems' is not allowed; allowed: math, json, chat"),
        ("math = 2000", "math = 0", "experts.samples.math: 0 is not allowed; allowed: 1 or more"),
        ('init = "chat"', 'init = "tea"', "router.init: 'tea' is not allowed; allowed: math, json, chat"),
        ("pairs = 32", "pairs = 0", "router.pairs: 0 is not allowed; allowed: 1 or more"),
        ("pair_samples = 32", "pair_samples = 9999", "router.pair_samples: 9999 is not allowed; allowed: at most"),
        ("pairs_per_step = 4", "", r"\[router\]: the key 'pairs_per_step' is missing"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    from ladle.recipes import config

    text = (Path(config.__file__).parent / "configs" / "demo.toml").read_text()
    assert f"\n{old}" in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(f"\n{old}", f"\n{new}", 1))
    with pytest.raises(ValueError, match=message):
        load_recipe(str(path))


def test_a_recipe_without_experts_loads_and_half_of_the_tables_do_not(tmp_path: Path) -> None:
    from ladle.recipes import config

    text = (Path(config.__file__).parent / "configs" / "demo.toml").read_text()
    start, end = text.index("[expert_adapter]"), text.index("[presets]")
    path = tmp_path / "plain.toml"
    path.write_text(text[:start] + text[end:])
    assert load_recipe(str(path)).experts is None
    with pytest.raises(ValueError, match=r"\[expert_adapter\]: the recipe has no such table"):
        _ = RouteWorkshop(load_recipe(str(path)), None, tmp_path).adapter  # type: ignore[arg-type]
    path.write_text(text[:start] + text[text.index("[router]") :])
    with pytest.raises(ValueError, match=r"\[expert_adapter\]: the key 'rank' is missing"):
        load_recipe(str(path))
