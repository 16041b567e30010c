"""One request's options through the whole engine, against plain loops over its own logits."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeds import fresh_seed
from tiny_engine import Recorder, alone, build, family_of, make_request, random_coefficients, random_prompt, serve
from transformers import RepetitionPenaltyLogitsProcessor

from ladle.kernels.reference.operations import gumbel
from ladle.merging.family.family import Family
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import StepOutput
from ladle.server.engine.scores.slot_tables import draw_keys


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_of(tmp_path_factory.mktemp("family"), "llama", 5)


@pytest.fixture
def engine(family: Family) -> Iterator[Engine]:
    yield build(family)


def _logits(recorder: Recorder, name: str, outputs: list[StepOutput]) -> torch.Tensor:
    return torch.stack([recorder.logits[name][step] for step in range(len(outputs))])


def test_logprobs_and_alternatives(engine: Engine, family: Family) -> None:
    """log-softmax of the combined score before temperature, truncation, bias and penalties."""
    rng = random.Random(fresh_seed())
    recorder = Recorder(engine)
    requests = [
        make_request(
            f"r{i}", random_prompt(rng, 1, 30), random_coefficients(rng, family.mergeable), logprobs=count, seed=i,
            temperature=rng.choice([0.0, 0.5]), top_k=rng.choice([0, 3]), presence_penalty=rng.choice([0.0, 1.0]),
            logit_bias=rng.choice([(), ((7, 5.0),)]),
        )
        for i, count in enumerate([None, 0, 1, 5, 20])
    ]  # fmt: skip
    for name, outputs in serve(engine, requests).items():
        wanted = next(r.sampling.logprobs for r in requests if r.request_id == name) or 0
        reference = torch.log_softmax(_logits(recorder, name, outputs)[:, 0].double(), -1)
        for row, output in zip(reference, outputs, strict=True):
            assert output.logprob == pytest.approx(row[output.token].item(), abs=1e-4)
            best = row.topk(wanted) if wanted else None
            assert len(output.top) == wanted
            for (token, logprob), value in zip(output.top, best.values.tolist() if best else [], strict=True):
                assert logprob == pytest.approx(value, abs=1e-4) == row[token].item()
            assert output.base_logprob is None and output.shift is None


def test_trace_reports_the_base_and_the_shift(engine: Engine, family: Family) -> None:
    rng = random.Random(fresh_seed())
    recorder = Recorder(engine)
    requests = [
        make_request("merged", random_prompt(rng, 5, 30), {"bone-positive": 1.3}, trace=True),
        make_request("base", random_prompt(rng, 5, 30), {}, trace=True),
    ]
    outputs = serve(engine, requests)
    logits = _logits(recorder, "merged", outputs["merged"]).double()
    final, base = torch.log_softmax(logits[:, 0], -1), torch.log_softmax(logits[:, 1], -1)
    kl = (base.exp() * (base - final)).sum(-1)
    for step, output in enumerate(outputs["merged"]):
        assert output.base_logprob == pytest.approx(base[step, output.token].item(), abs=1e-4)
        assert output.shift == pytest.approx(kl[step].item(), abs=1e-4) and kl[step] > 1e-4
        entropy = -(final[step].exp() * final[step]).sum().item()
        assert output.trace is not None and output.trace.entropy == pytest.approx(entropy, abs=1e-4)
    for output in outputs["base"]:
        assert output.base_logprob == output.logprob and output.shift == 0


def test_logit_bias_bans_and_forces(engine: Engine, family: Family) -> None:
    rng = random.Random(fresh_seed())
    prompt = random_prompt(rng, 5, 20)
    forced = alone(engine, make_request("r", prompt, logit_bias=((77, 100.0),), max_tokens=5))
    assert [output.token for output in forced] == [77] * 5
    free = alone(engine, make_request("r", prompt, temperature=0.0, max_tokens=6, ignore_eos=True))
    banned = free[0].token
    bias = ((banned, -100.0),)
    others = alone(engine, make_request("r", prompt, temperature=0.0, max_tokens=6, logit_bias=bias, ignore_eos=True))
    assert banned not in [output.token for output in others]
    assert others[0].top == () and others[0].logprob < free[0].logprob, "logprobs are of the score without bias"


def test_penalties_equal_a_plain_loop(engine: Engine, family: Family) -> None:
    """Greedy with penalties, replayed from the recorded logits by the formulas; also after preemption."""
    rng = random.Random(seed := fresh_seed())
    small = build(family, kv_memory=14 * 16 * 2 * 2 * 2 * 8 * 4)
    for candidate in (engine, small):
        recorder = Recorder(candidate)
        requests = [
            make_request(
                f"r{i}", random_prompt(rng, 3, 40, 30), random_coefficients(rng, family.mergeable), temperature=0.0,
                repetition_penalty=rng.choice([1.0, 1.5, 0.8]), presence_penalty=rng.choice([0.0, 0.7, -0.5]),
                frequency_penalty=rng.choice([0.0, 0.4, -0.2]), max_tokens=40, ignore_eos=True,
            )
            for i in range(6)
        ]  # fmt: skip
        results = serve(candidate, requests, rng)
        for request in requests:
            outputs, options = results[request.request_id], request.sampling
            logits = _logits(recorder, request.request_id, outputs)[:, 0]
            said: list[int] = []
            for row, output in zip(logits, outputs, strict=True):
                scores = row[None].clone()
                if options.repetition_penalty != 1:
                    history = torch.tensor([[*request.prompt, *said]])
                    scores = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(history, scores)
                for token in set(said):
                    scores[0, token] -= options.presence_penalty + said.count(token) * options.frequency_penalty
                assert scores[0, output.token] >= scores.max() - 1e-5, seed
                said.append(output.token)
    assert small.stats().preemptions > 0


def test_end_of_sequence(engine: Engine) -> None:
    end = next(iter(engine.eos))
    prompt = random_prompt(random.Random(fresh_seed()), 4, 9)
    stopped = alone(engine, make_request("r", prompt, logit_bias=((end, 100.0),), max_tokens=5))
    assert [(o.token, o.text, o.token_text, o.finish_reason) for o in stopped] == [(end, "", "", "stop")]
    assert stopped[0].completion_tokens == 1
    ignored = alone(engine, make_request("r", prompt, logit_bias=((end, 100.0),), max_tokens=5, ignore_eos=True))
    assert [output.token for output in ignored] == [end] * 5
    assert "".join(output.text for output in ignored) == "" and ignored[-1].finish_reason == "length"


def test_text_counts_and_reasons(engine: Engine, family: Family) -> None:
    rng = random.Random(fresh_seed())
    requests = [
        make_request(
            f"r{i}", random_prompt(rng, 1, 40), random_coefficients(rng, family.mergeable), seed=i,
            max_tokens=rng.randint(1, 20),
        )
        for i in range(12)
    ]  # fmt: skip
    for name, outputs in serve(engine, requests, rng).items():
        request = next(r for r in requests if r.request_id == name)
        tokens = [output.token for output in outputs]
        assert [output.completion_tokens for output in outputs] == list(range(1, len(outputs) + 1))
        assert all(output.finish_reason is None for output in outputs[:-1])
        ended = tokens[-1] in engine.eos
        assert outputs[-1].finish_reason == ("stop" if ended else "length")
        assert len(tokens) == request.sampling.max_tokens or ended
        assert "".join(o.text for o in outputs) == engine.tokenizer.decode(tokens, skip_special_tokens=True)


def test_stop_strings_through_the_engine(engine: Engine) -> None:
    rng = random.Random(fresh_seed())
    met = 0
    for index in range(200):
        options: dict[str, Any] = {"max_tokens": 24, "seed": index, "ignore_eos": True, "temperature": 1.5}
        prompt = random_prompt(rng, 2, 20)
        text = "".join(o.text for o in alone(engine, make_request("r", prompt, **options)))
        start = rng.randrange(max(1, len(text) - 3))
        stop = text[start : start + rng.randint(1, 5)]
        if not stop or "\ufffd" in stop:
            continue
        outputs = alone(engine, make_request("r", prompt, stop=(stop, "never said"), **options))
        assert "".join(o.text for o in outputs) == text[: text.find(stop)]
        assert outputs[-1].finish_reason == "stop"
        met += 1
        if met == 4:
            return
    raise AssertionError(f"only {met} texts had something to stop at")


def test_seeds_decide(engine: Engine) -> None:
    prompt = random_prompt(random.Random(fresh_seed()), 5, 20)

    def draw(seed: int) -> list[int]:
        return [o.token for o in alone(engine, make_request("r", prompt, seed=seed, max_tokens=16, ignore_eos=True))]

    assert draw(11) == draw(11)
    assert len({tuple(draw(seed)) for seed in (0, 1, 2, 2**63, 2**64 - 1, -1)}) == 5, "-1 is 2**64 - 1"


def test_first_tokens_follow_the_distribution(engine: Engine) -> None:
    """Over seeds, what users see is softmax(logits / temperature)."""
    recorder = Recorder(engine)
    prompt = random_prompt(random.Random(fresh_seed()), 5, 20)
    n = 1500
    requests = [make_request(f"r{i}", prompt, seed=i, temperature=0.6, max_tokens=1) for i in range(n)]
    counts = torch.zeros(engine.vocabulary, dtype=torch.float64)
    for start in range(0, n, 200):
        for outputs in serve(engine, requests[start : start + 200]).values():
            counts[outputs[0].token] += 1
    p = torch.softmax(recorder.logits["r0"][0][0].double() / 0.6, -1)
    large = p * n >= 5
    observed = torch.cat((counts[large], counts[~large].sum()[None]))
    expected = torch.cat((p[large], p[~large].sum()[None])) * n
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    degrees = len(expected) - 1
    bound = degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3
    assert statistic < max(bound, 30), (statistic, degrees)


def test_temperatures_follow_the_entropy(engine: Engine, family: Family) -> None:
    """The token is what the float64 formula's temperature draws; a range of 0 changes nothing."""
    rng = random.Random(fresh_seed())
    recorder = Recorder(engine)
    requests = [
        make_request(
            f"r{i}", random_prompt(rng, 1, 30), random_coefficients(rng, family.mergeable), seed=i, max_tokens=6,
            temperature=rng.choice([0.3, 1.0]), dynatemp_range=rng.choice([0.3, 1.0]), ignore_eos=True,
            dynatemp_exponent=rng.choice([0.5, 2.0]), logit_bias=rng.choice([(), ((7, 5.0),)]),
        )
        for i in range(4)
    ]  # fmt: skip
    off = [
        replace(r, request_id=f"o{i}", sampling=replace(r.sampling, dynatemp_range=0.0, dynatemp_exponent=1.0 + i))
        for i, r in enumerate(requests)
    ]
    plain = [replace(r, request_id=f"p{i}", sampling=replace(r.sampling, dynatemp_range=0.0, dynatemp_exponent=1.0))
             for i, r in enumerate(requests)]  # fmt: skip
    served = serve(engine, [*requests, *off, *plain])
    for i, request in enumerate(requests):
        assert [o.token for o in served[f"o{i}"]] == [o.token for o in served[f"p{i}"]]
        params, outputs = request.sampling, served[request.request_id]
        for step, scores in enumerate(_logits(recorder, request.request_id, outputs)[:, 0].double()):
            for token, bias in params.logit_bias:
                scores[token] += bias
            share = float(torch.special.entr(torch.softmax(scores, -1)).sum()) / math.log(len(scores))
            low, high = max(0.0, params.temperature - params.dynatemp_range), params.temperature + params.dynatemp_range
            warm = low + (high - low) * share**params.dynatemp_exponent
            key = torch.from_numpy(draw_keys(np.array([i], dtype=np.uint64), np.array([step])))
            drawn = gumbel(key, torch.arange(len(scores), dtype=torch.int32)).double() + scores / warm
            best = drawn.topk(2).values
            if best[0] - best[1] > 1e-4:
                assert outputs[step].token == int(drawn.argmax())


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_other_dtypes_run(dtype: str, tmp_path: Path) -> None:
    family = family_of(tmp_path, "llama", dtype=torch.bfloat16)
    rng = random.Random(fresh_seed())
    engine = build(family, dtype=dtype, device="auto" if dtype == "auto" else "cpu")
    prompts = [random_prompt(rng, 1, 50) for _ in range(5)]
    outputs = serve(engine, [make_request(f"r{i}", prompt, {"bone-positive": 0.5}) for i, prompt in enumerate(prompts)])
    assert all(math.isfinite(o.logprob) for output in outputs.values() for o in output)
