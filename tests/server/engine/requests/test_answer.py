"""What an answer would show if it ended at a token, against answers that max_tokens ends there."""

import random
from dataclasses import replace

from seeds import fresh_seed
from tiny_engine import make_request
from tiny_models import tiny_tokenizer

from ladle.guidance.plan import Monitor
from ladle.server.engine.requests.answer import Answer
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.thinking import Thinking

WORDS = ["rain", " </", "think", "é", "雨", "🌧", "<", "<think>", "</think>", "STOP", "ST", " the"]


def test_what_a_cut_would_show_is_what_a_cut_shows() -> None:
    """With stop strings, halves of characters, and thoughts whose tags are begun."""
    rng, tokenizer = random.Random(fresh_seed()), tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def said(request: GenerationRequest, tokens: tuple[int, ...]) -> list[StepOutput]:
        answer, outputs = Answer(request, tokenizer, frozenset({2})), list[StepOutput]()
        for token in tokens:
            if not outputs or outputs[-1].finish_reason is None:
                outputs.append(answer.push(token, len(outputs) + 1, 0, 0.0, (), None))
        return outputs

    held = 0
    for _ in range(40):
        plain = make_request("r", ids("Why?"), max_tokens=200)
        sampling = replace(plain.sampling, stop=("STOP", " the rain", "😀"), include_stop=rng.random() < 0.5)
        plan = replace(plain.plan, monitors=(Monitor("bad", 0.5),))
        thinking = Thinking(ids("<think>"), ids("</think>"), None, (), rng.random() < 0.5)
        request = replace(plain, plan=plan, sampling=sampling, thinking=thinking if rng.random() < 0.6 else None)
        tokens = ids("".join(rng.choices(WORDS, k=rng.randint(1, 12))))
        outputs = said(request, tokens)
        for count in range(1, len(outputs)):
            short = replace(request, plan=plain.plan, sampling=replace(sampling, max_tokens=count))
            *before, last = said(short, tokens)
            assert [o.text for o in before] == [o.text for o in outputs[: count - 1]]
            own = outputs[count - 1]
            shown = (own.text, own.reasoning, own.reasoning_tokens)
            if own.cut is not None:
                held += 1
                shown = (own.cut.text, own.cut.reasoning, own.cut.reasoning_tokens)
            assert (last.text, last.reasoning, last.reasoning_tokens) == shown
        # Asking changed nothing of what came afterwards.
        assert [replace(o, cut=None) for o in outputs] == said(replace(request, plan=plain.plan), tokens)
    assert held
