"""``ladle check --deep``: every number against a float64 computation of its own, written from the formulas."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from guided_folder import write_guided_family, write_head
from reference_weights import ReferenceWeights
from safetensors.torch import load_file, save_file
from tiny_models import tiny_tokenizer, write_family, write_tiny_base
from torch import Tensor

from ladle.guidance.diagnostics.barrier import Barrier, Pair
from ladle.guidance.diagnostics.comparison import Difference
from ladle.guidance.diagnostics.compatibility import Compatibility
from ladle.guidance.diagnostics.deep import examine
from ladle.guidance.diagnostics.deep_report import DeepReport
from ladle.guidance.diagnostics.forwards import Forwards, State
from ladle.guidance.diagnostics.groups import find_groups
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family

PROMPTS = ("Tell me about rain.", "Why?", "Name two rivers, and a lake.")
LENGTH = 9
ABOUT = {"rel": 2e-3, "abs": 2e-5}  # float32 against float64, on log-ratios of some tenths


class Reference:
    """Scores and values in float64 at every token of the given answers; the prompts rendered by the template."""

    def __init__(self, root: Path, answers: Sequence[Sequence[int]], prompts: Sequence[str] = PROMPTS) -> None:
        self.weights = ReferenceWeights(root)
        self.answers = [list(answer) for answer in answers]
        self.prompts = prompts
        self.tokenizer = tiny_tokenizer()
        self.answer = torch.tensor([token for answer in self.answers for token in answer])

    def _rows(self, system: str | None) -> list[list[int]]:
        first = [] if system is None else [{"role": "system", "content": system}]
        rows = []
        for prompt in self.prompts:
            turns = [*first, {"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            rows.append(self.tokenizer.encode(text, add_special_tokens=False))
        return rows

    def logprobs(self, mix: Mapping[str, float], model: str = "", system: str | None = None) -> Tensor:
        found = []
        for row, answer in zip(self._rows(system), self.answers, strict=True):
            logits, _ = self.weights.run(model, mix, [row + answer])
            found.append(logits[0, len(row) - 1 : -1].log_softmax(dim=-1))
        return torch.cat(found)

    def value(
        self, mix: Mapping[str, float], heads: Mapping[str, float], model: str = "", system: str | None = None
    ) -> Tensor:
        weight = sum(share * self.weights.heads[name][0] for name, share in heads.items())
        bias = sum(share * self.weights.heads[name][1] for name, share in heads.items())
        found = []
        for row, answer in zip(self._rows(system), self.answers, strict=True):
            _, hidden = self.weights.run(model, mix, [row + answer])
            found.append(hidden[0, len(row) :] @ weight + bias)
        return torch.cat(found)

    def greedy(self) -> list[list[int]]:
        answers = []
        for row in self._rows(None):
            answer: list[int] = []
            while len(answer) < LENGTH and (not answer or answer[-1] != 2):  # 2 ends a text
                logits, _ = self.weights.run("", {}, [row + answer])
                answer.append(int(logits[0, -1].argmax()))
            answers.append(answer)
        return answers


def run(root: Path) -> tuple[DeepReport, Reference]:
    family = load_family(root)
    report = examine(family, PROMPTS, length=LENGTH)
    return report, Reference(root, Forwards(family, PROMPTS, LENGTH).answers)


def compare(merged: Tensor, ensembled: Tensor) -> tuple[float, float, float]:
    gap = (merged - ensembled).abs()
    spread = ((ensembled - ensembled.mean()) ** 2).mean().sqrt()
    return float(gap.mean()), float(gap.max()), float(spread)


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_numbers_of_single_objective_values(tmp_path: Path, arch: str, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", arch, seed % 1000, kind="singles")
    report, reference = run(root)
    assert report.tokens == len(reference.answer) and report.prompts == 3
    plain = reference.logprobs({})
    best = plain.topk(20).indices
    tuned, score = ("tuned-positive", "tuned-simple"), ("score-positive", "score-simple")
    differences = {(found.kind, found.preference): found for found in report.differences}
    assert len(differences) == len(report.differences) == 4
    for words, weights in (("uniform", (0.5, 0.5)), ("positive=0.75", (0.75, 0.25))):
        merged = reference.logprobs(dict(zip(tuned, weights, strict=True))) - plain
        ensembled = sum(w * (reference.logprobs({name: 1.0}) - plain) for name, w in zip(tuned, weights, strict=True))
        assert isinstance(ensembled, Tensor)
        expected = compare(merged.gather(1, best), ensembled.gather(1, best))
        found = differences["implicit", words]
        assert (found.mean, found.largest, found.spread) == pytest.approx(expected, **ABOUT)
        shares = dict(zip(score, weights, strict=True))
        parts = [w * reference.value({name: 1.0}, {name: 1.0}) for name, w in shares.items()]
        expected = compare(reference.value(shares, shares), parts[0] + parts[1])
        found = differences["explicit", words]
        assert (found.mean, found.largest, found.spread) == pytest.approx(expected, **ABOUT)
        assert found.relative == pytest.approx(found.mean / found.spread)

    barriers = {found.kind: found for found in report.barriers}
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)

    def likelihood(mix: Mapping[str, float]) -> float:
        return -float(reference.logprobs(mix).gather(1, reference.answer[:, None]).mean())

    losses = [likelihood({tuned[0]: a, tuned[1]: 1 - a}) for a in grid]
    _check_barrier(barriers["implicit"], losses)
    along = [
        reference.value(mix, mix)
        for mix in ({score[0]: a, score[1]: 1 - a} if 0 < a < 1 else {score[0 if a else 1]: 1.0} for a in grid)
    ]
    target = (along[0] + along[-1]) / 2
    _check_barrier(barriers["explicit"], [float(((v - target) ** 2).mean()) for v in along])


def _check_barrier(found: object, losses: Sequence[float]) -> None:
    rises = [loss - (a * losses[-1] + (1 - a) * losses[0]) for a, loss in zip((0, 0.25, 0.5, 0.75, 1), losses)]  # noqa: B905
    assert found.ends == pytest.approx((losses[-1], losses[0]), **ABOUT)  # type: ignore[attr-defined]
    assert found.height == pytest.approx(max(rises), **ABOUT)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["singles", "rows", "small", "unreferenced"])
def test_compatibility_in_numbers(tmp_path: Path, kind: str, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, kind=kind, size=0.2)
    report, reference = run(root)
    family = load_family(root)
    assert family.matrix is not None
    model = "small" if kind == "small" else ""
    found = {(entry.kind, entry.preference): entry for entry in report.compatibility}
    assert len(found) == len(report.compatibility) == (9 if kind == "unreferenced" else 6)
    for words, mu in (("positive", (1.0, 0.0)), ("simple", (0.0, 1.0)), ("uniform", (0.5, 0.5))):
        lam = torch.linalg.solve(torch.tensor(family.matrix.T), torch.tensor(mu, dtype=torch.float64)).tolist()
        base = reference.logprobs({"bone-positive": lam[0], "bone-simple": lam[1]})
        weights = list(mu)
        if kind == "rows":
            values = [value for value in family.values if value.kind == "implicit" and value.rewards is not None]
            rows = torch.tensor([value.rewards for value in values], dtype=torch.float64)
            weights = torch.linalg.solve(rows.T, torch.tensor(mu, dtype=torch.float64)).tolist()
        names = ("tuned-positive", "tuned-simple")
        score, gain = torch.zeros_like(base), torch.zeros_like(base)
        if kind == "small":  # different system messages: an ensemble
            for name, system, weight in zip(names, ("Be positive.", "Be simple."), weights, strict=True):
                tuned = reference.logprobs({name: 1.0}, model, system)
                score += weight * tuned
                gain += weight * (tuned - reference.logprobs({}, model, system))
        else:
            score = reference.logprobs(dict(zip(names, weights, strict=True)))
            gain = score - reference.logprobs({})
        _check_fit(found["implicit", words], base, score, gain)
        arm = {"arm": 1.0, "arm@positive": mu[0], "arm@simple": mu[1]}
        score = reference.logprobs(arm)
        _check_fit(found["conditioned on the preference", words], base, score, score)
        if kind == "unreferenced":
            score = reference.logprobs(dict(zip(("arm-positive", "arm-simple"), weights, strict=True)))
            _check_fit(found["implicit without a reference", words], base, score, score)


def _check_fit(found: object, base: Tensor, score: Tensor, gain: Tensor) -> None:
    divergence = (base.exp() * (base - score.log_softmax(dim=-1))).sum(dim=-1)
    assert found.divergence == pytest.approx(float(divergence.mean()), **ABOUT)  # type: ignore[attr-defined]
    assert found.largest == pytest.approx(float(divergence.max()), **ABOUT)  # type: ignore[attr-defined]
    twenty = base.topk(20).indices
    for share, scores in ((found.favoured, gain), (found.outside, base + gain)):  # type: ignore[attr-defined]
        outside = (twenty != scores.argmax(dim=-1, keepdim=True)).all(dim=-1).double().mean()
        assert share == pytest.approx(float(outside), abs=1.01 / len(base))  # one tie may fall the other way


def test_the_answers_are_the_bases_greedy_ones(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000)
    forwards = Forwards(load_family(root), PROMPTS, LENGTH)
    assert forwards.answers == Reference(root, [[]] * 3).greedy()


def test_a_guide_scaled_up_absurdly_is_flagged(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, size=0.01)
    before = [found for found in run(root)[0].compatibility if found.kind == "implicit"]
    assert all(found.fits for found in before)
    for name in ("tuned-positive", "tuned-simple"):
        file = root / "values" / name / "adapter_model.safetensors"
        tensors = {key: t * 300 if "lora_B" in key else t for key, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    report, _ = run(root)
    after = [found for found in report.compatibility if found.kind == "implicit"]
    assert len(before) == len(after) == 3 and not any(found.fits for found in after)
    # The divergence cannot grow as far: a tiny model's logits are bounded. What it favours leaves the base's best.
    assert all(new.divergence > old.divergence for old, new in zip(before, after, strict=True))
    assert all(old.outside < 0.05 < new.outside for old, new in zip(before, after, strict=True))
    assert sum(line.startswith("implicit") and "a token outside the base's" in line for line in report.warnings) == 3


def test_warnings_say_what_is_beyond_its_limit() -> None:
    fit = Compatibility("implicit", "uniform", "base", divergence=2.5, largest=9.0, favoured=0.9, outside=0.01)
    assert not fit.fits and "2.5 nats a token" in fit.warning() and "outside" not in fit.warning()
    assert replace(fit, divergence=1.9).fits and not replace(fit, divergence=1.9, outside=0.06).fits
    assert not Difference("explicit", "uniform", 1e-6, 1e-6, 0.0).far  # rounding
    assert Difference("explicit", "uniform", 0.3, 0.5, 1.0).far and not Difference("explicit", "u", 0.2, 9, 1.0).far
    ends = Barrier("explicit", "a", "b", (0.1, 0.1), 0.026, 0.5, variance=1.0)
    assert ends.high and not replace(ends, height=0.024).high and not replace(ends, variance=3.0).high
    tokens = replace(ends, variance=None)
    assert not tokens.high and replace(tokens, height=0.051).high


def test_values_that_differ_only_in_their_heads_merge_exactly(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, kind="singles")
    family = root / "family.toml"
    text = family.read_text()
    # Trunks that were not trained, and heads of their own.
    for index, name in enumerate(("score-positive", "score-simple")):
        text = text.replace(f'path = "values/{name}"', f'path = "values/head-{index}"')
        folder = root / "values" / f"head-{index}"
        folder.mkdir()
        source = root / "values" / "score-positive"
        (folder / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
        tensors = load_file(source / "adapter_model.safetensors")
        save_file(
            {key: torch.zeros_like(t) if "lora_B" in key else t for key, t in tensors.items()},
            folder / "adapter_model.safetensors",
        )
        write_head(folder, 32, seed + index)
    family.write_text(text)
    report, _ = run(root)
    explicit = [found for found in report.differences if found.kind == "explicit"]
    assert len(explicit) == 2
    assert all(found.mean == found.largest == 0.0 < found.spread and not found.far for found in explicit)


def test_identical_members_have_no_barrier(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, kind="singles")
    file = root / "family.toml"
    text = file.read_text().replace('path = "values/tuned-simple"', 'path = "values/tuned-positive"')
    shutil.copytree(root / "values" / "score-positive", root / "values" / "copy")
    file.write_text(text.replace('path = "values/score-simple"', 'path = "values/copy"'))
    report, _ = run(root)
    barriers = {found.kind: found for found in report.barriers}
    assert barriers["implicit"].height == 0.0 and barriers["implicit"].at is None  # one folder: one set of weights
    # Two folders with the same weights: nothing but the rounding of their sum.
    assert 0.0 <= barriers["explicit"].height < 1e-9 and max(barriers["explicit"].ends) < 1e-9
    assert max(found.mean for found in report.differences) < 1e-5
    assert not any(found.high for found in report.barriers)


def test_a_barrier_is_found(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, kind="singles")
    family = load_family(root)
    pair = next(pair for group in find_groups(family)[0] for pair in Pair.all(group)[0] if not group.explicit)
    forwards = Forwards(family, PROMPTS, LENGTH)
    middle = pair.line()[2]
    # As if the middle found every token of the answers ten nats less likely than it does.
    forwards._results[middle, False] = forwards.logprobs(middle) - 10.0
    found = pair.measure(forwards, family)
    assert found.height > 5.0 and found.at == 0.5 and found.high and "linearly connected" in found.warning()


def test_policies_stand_in_for_values(tmp_path: Path, seed: int) -> None:
    root = write_family(tmp_path / "f", seed=seed % 1000, n=3, full=("only-simple",))
    report, reference = run(root)
    assert {found.kind for found in report.differences} == {"policies"}
    assert len(report.barriers) == 3 and len(report.compatibility) == 4
    assert any("implicit" in line for line in report.skipped) and any("explicit" in line for line in report.skipped)
    plain = reference.logprobs({})
    names = ("only-positive", "only-simple", "only-concise")
    merged = reference.logprobs(dict.fromkeys(names, 1 / 3)) - plain
    ensembled = sum(reference.logprobs({name: 1.0}) - plain for name in names) / 3
    best = plain.topk(20).indices
    expected = compare(merged.gather(1, best), ensembled.gather(1, best))
    found = report.differences[0]
    assert (found.mean, found.largest, found.spread) == pytest.approx(expected, **ABOUT)

    only_bones, _ = run(write_family(tmp_path / "g", seed=seed % 1000, policies=False))
    assert {found.kind for found in only_bones.differences} == {"backbones"}


def test_values_of_different_models_or_prompts_are_not_merged(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000, kind="small")
    report, _ = run(root)
    assert {found.kind for found in report.differences} == {"explicit"}
    assert any("tuned-positive and tuned-simple: they have different system" in line for line in report.skipped)
    assert any(line.startswith("implicit: merged against ensembled") for line in report.skipped)


def test_a_family_without_members_says_what_is_missing(tmp_path: Path) -> None:
    write_tiny_base(tmp_path / "base")
    (tmp_path / "family.toml").write_text('name = "bare"\n[base]\nmodel = "base"\n')
    report = examine(load_family(tmp_path), PROMPTS)
    assert report.tokens == 0 and len(report.skipped) >= 3 and not report.warnings


def test_weights_that_give_no_numbers_are_an_error(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000)
    file = root / "values" / "tuned-simple" / "adapter_model.safetensors"
    tensors = {key: t * 1e36 if "lora_B" in key else t for key, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FamilyError, match="tuned-simple=.*NaN or infinity"):
        examine(load_family(root), PROMPTS, length=LENGTH)


def test_the_report_is_json_and_progress_is_told(tmp_path: Path, seed: int) -> None:
    root = write_guided_family(tmp_path / "f", seed=seed % 1000)
    told: list[tuple[int, int]] = []
    report = examine(load_family(root), PROMPTS, lambda done, total: told.append((done, total)), LENGTH)
    assert [done for done, _ in told] == [0, *range(3, told[0][1] + 1)]  # the answers, then one text after the other
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert {entry["verdict"] for entry in document["compatibility"]} <= {"compatible", "incompatible"}
    assert document["prompts"] == 3 and len(document["differences"]) == 4 and document["warnings"] is not None


def test_a_state_has_one_form() -> None:
    assert State.of("", {"b": 0.5, "a": 1e-17, "c": 1 - 1e-16}) == State("", (("b", 0.5), ("c", 1.0)))
