import numpy as np
import torch

from ladle.recipes.base_model import LoadedBase
from ladle.recipes.batched_sampling import draw, sample

OPTIONS = {"max_tokens": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def _prompts(random: np.random.Generator) -> list[list[int]]:
    return [random.integers(5, 300, size=n).tolist() for n in (4, 9, 6)]


def test_draws_follow_the_softmax(seed: int) -> None:
    logits = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    tokens = draw(logits.expand(20000, -1), 0.7, 0, 1.0, torch.Generator().manual_seed(seed))
    shares = torch.bincount(tokens, minlength=6) / 20000
    torch.testing.assert_close(shares, torch.softmax(logits / 0.7, -1), atol=0.02, rtol=0.0)


def test_truncation_keeps_the_nucleus(seed: int) -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(5000, -1)
    generator = torch.Generator().manual_seed(seed)
    assert set(draw(logits, 1.0, 0, 0.7, generator).tolist()) == {0, 1}
    assert set(draw(logits, 1.0, 3, 1.0, generator).tolist()) == {0, 1, 2}
    # After top-k 2 the shares are 2/3 and 1/3, so a top-p of 0.6 leaves one token.
    assert set(draw(logits, 1.0, 2, 0.6, generator).tolist()) == {0}


def test_greedy_rows_equal_transformers_generate(base: LoadedBase, random: np.random.Generator) -> None:
    prompts = _prompts(random)
    outputs = sample(base.model, prompts, eos=base.eos, seed=0, **{**OPTIONS, "top_k": 1})  # type: ignore[arg-type]
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = base.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert output == expected.tolist()


def test_rows_end_and_are_dropped_without_disturbing_the_others(base: LoadedBase, random: np.random.Generator) -> None:
    prompts = _prompts(random)
    plain = sample(base.model, prompts, eos=-1, seed=0, **{**OPTIONS, "top_k": 1})  # type: ignore[arg-type]
    # A token that greedy decoding is known to reach plays the end of turn: every row must be its old self up to there.
    eos = plain[0][3]
    for output, full in zip(
        sample(base.model, prompts, eos=eos, seed=0, **{**OPTIONS, "top_k": 1}),  # type: ignore[arg-type]
        plain,
        strict=True,
    ):
        assert output == (full[: full.index(eos) + 1] if eos in full else full)


def test_seed_decides(base: LoadedBase, random: np.random.Generator) -> None:
    prompts = _prompts(random)
    first, again, other = (sample(base.model, prompts, eos=base.eos, seed=s, **OPTIONS) for s in (3, 3, 4))  # type: ignore[arg-type]
    assert first == again
    assert first != other
