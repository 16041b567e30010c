"""Members that TRL trains by DPO: its loss against the formula, what is learnt, going on where a run was killed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.config import AdapterConfig, DpoConfig
from ladle.recipes.scoring import answer_logprobs
from ladle.recipes.soup import load_members, merged
from ladle.recipes.training import trl_dpo, trl_run
from ladle.recipes.training.candidate_pool import Candidate
from ladle.recipes.training.pairs import PromptPairs
from ladle.recipes.training.trl_dpo import train_by_dpo
from ladle.recipes.training.trl_run import TrainingJob, last_checkpoint

ADAPTER = AdapterConfig(rank=2, alpha=4, targets=("q_proj", "down_proj"), seed=5)
DPO = DpoConfig(
    seed=1,
    beta=0.3,
    winner_nll=0.5,
    pairs=1,
    prompts_per_step=2,
    epochs=4,
    learning_rate=1e-2,
    warmup=0.1,
    max_gradient=1.0,
)


def job(folder: Path) -> TrainingJob:
    return TrainingJob(folder.name, folder, "some/base", ADAPTER)


@pytest.fixture
def pairs(base: LoadedBase, random: np.random.Generator) -> list[PromptPairs]:
    made = []
    for text in ("rain", "sea", "stars", "sun"):
        # Of different lengths; the loser was cut off, so that it does not end its turn.
        answers = [random.integers(5, 300, size=int(n)).tolist() for n in random.integers(3, 8, size=2)]
        answers[0].append(base.eos)
        with torch.inference_mode():
            totals = answer_logprobs(base.model, base.prompt_ids(text), answers)[1].sum(-1).tolist()
        winner, loser = (
            Candidate(text, "plain", tuple(answer), base.text(answer), total, ())
            for answer, total in zip(answers, totals, strict=True)
        )
        made.append(PromptPairs(text, (winner,), (loser,)))
    return made


def quiet(line: str) -> None:
    pass


def test_the_loss_is_the_formula_over_the_sampled_tokens(
    base: LoadedBase,
    pairs: list[PromptPairs],
    random: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapter is not trained but set at random, so that winner and loser are far from the base."""
    base.model.double()
    seen = []

    def run(base: LoadedBase, job: TrainingJob, make: object, report: object) -> dict[str, float]:
        parts = {"processing_class": base.tokenizer, "peft_config": trl_run.lora_config(ADAPTER)}
        trainer = make(model=base.model, **parts)  # type: ignore[operator]
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.tensor(random.normal(scale=0.2, size=parameter.shape))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
        with torch.no_grad():
            seen.append(float(trainer.compute_loss(trainer.model, batch)))
        policy = []
        for pair in pairs:
            for answer in (pair.winners[0].tokens, pair.losers[0].tokens):
                ids = [*base.prompt_ids(pair.prompt), *answer]
                with torch.no_grad():
                    logits = torch.log_softmax(trainer.model(torch.tensor([ids])).logits[0, :-1].double(), -1)
                policy.append(float(sum(logits[-len(answer) + t, token] for t, token in enumerate(answer))))
        terms = [
            math.log1p(
                math.exp(-DPO.beta * (policy[2 * i] - p.winners[0].logprob - policy[2 * i + 1] + p.losers[0].logprob))
            )
            for i, p in enumerate(pairs)
        ]
        likelihood = -sum(policy[::2]) / sum(len(p.winners[0].tokens) for p in pairs)
        seen.append(float(np.mean(terms)) + DPO.winner_nll * likelihood)
        trainer.model.unload()
        return {}

    monkeypatch.setattr(trl_dpo, "run", run)
    train_by_dpo(base, job(tmp_path / "member"), pairs, DPO, {}, quiet)
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert seen[1] > 0.1


def test_training_prefers_winners_repeats_and_leaves_the_base_alone(
    base: LoadedBase, pairs: list[PromptPairs], tmp_path: Path
) -> None:
    tokens = torch.tensor([[5, 9, 40, 7]])
    before, config = base.model(tokens).logits, base.model.config.to_dict()
    pad = base.tokenizer.pad_token
    for name in ("first", "second"):
        result = train_by_dpo(base, job(tmp_path / name), pairs, DPO, {}, quiet)
    assert result["rewards/accuracies"] == 1.0 and result["rewards/margins"] > 0.3
    torch.testing.assert_close(base.model(tokens).logits, before, rtol=0.0, atol=0.0)
    assert base.model.config.to_dict() == config and base.tokenizer.pad_token == pad
    assert not base.model.training and "forward" not in base.model.__dict__
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "first", "second"], "checkpoints are gone"

    members = load_members(base, {"first": tmp_path / "first"})
    with merged(base, members, {"first": 1.0}), torch.inference_mode():
        for pair in pairs:
            answers = [pair.winners[0].tokens, pair.losers[0].tokens]
            winner, loser = answer_logprobs(base.model, base.prompt_ids(pair.prompt), answers)[1].sum(-1).tolist()
            assert winner - loser > pair.winners[0].logprob - pair.losers[0].logprob


class Killed(Exception):
    pass


class Killer(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            raise Killed


def test_a_killed_training_goes_on_and_ends_in_the_same_adapter(
    base: LoadedBase,
    pairs: list[PromptPairs],
    random: np.random.Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of eight steps each is saved; the run is killed at one of them, and once more while it writes a checkpoint."""
    train_by_dpo(base, job(tmp_path / "whole"), pairs, DPO, {}, quiet)
    late = tmp_path / "late"
    began = trl_run.last_checkpoint
    starts: list[str | None] = []
    plain = trl_run._use_our_progress
    step = int(random.integers(3, 7))

    def kill(trainer: object) -> None:
        plain(trainer)
        trainer.add_callback(Killer(step))  # type: ignore[attr-defined]

    def starting(folder: Path) -> str | None:
        starts.append(began(folder))
        return starts[-1]

    monkeypatch.setattr(trl_run, "last_checkpoint", starting)
    with monkeypatch.context() as patched:
        patched.setattr(trl_run, "_use_our_progress", kill)
        with pytest.raises(Killed):
            train_by_dpo(base, job(late), pairs, DPO, {}, quiet)
    assert not late.exists()
    torn = job(late).checkpoints / f"checkpoint-{step + 1}"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_step": ')
    result = train_by_dpo(base, job(late), pairs, DPO, {}, quiet)
    assert starts[0] is None and starts[1] is not None and starts[1].endswith(f"checkpoint-{step - 1}")
    whole = (tmp_path / "whole" / "adapter_model.safetensors").read_bytes()
    assert (late / "adapter_model.safetensors").read_bytes() == whole
    assert math.isfinite(result["loss"])
    assert last_checkpoint(job(late).checkpoints) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bogus": 1}, "trl: unknown key 'bogus'; allowed: the arguments of TRL's DPOConfig"),
        ({"learning_rate": 1.0}, "trl.learning_rate: not allowed here; the recipe says it by the table"),
        ({"trust_remote_code": True}, "code of a model is never run"),
        ({"per_device_train_batch_size": 3}, "trl.per_device_train_batch_size: 3 is not allowed; allowed: a number"),
        ({"lr_scheduler_type": "sideways"}, "trl: DPOConfig refuses this"),
    ],
)
def test_what_trl_does_not_take_is_refused(
    base: LoadedBase, pairs: list[PromptPairs], tmp_path: Path, given: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        train_by_dpo(base, job(tmp_path / "member"), pairs, DPO, given, quiet)


def test_a_loss_that_is_no_number_ends_the_training(base: LoadedBase, pairs: list[PromptPairs], tmp_path: Path) -> None:
    broken = [PromptPairs(p.prompt, p.winners, p.losers) for p in pairs]
    winner = broken[0].winners[0]
    object.__setattr__(winner, "logprob", float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step"):
        train_by_dpo(base, job(tmp_path / "member"), broken, DPO, {}, quiet)
    assert not (tmp_path / "member").exists()
    with pytest.raises(ValueError, match="no prompt of the pool has two answers"):
        train_by_dpo(base, job(tmp_path / "member"), [], DPO, {}, quiet)
