"""Thoughts as a fold over tokens, against a search in the whole text."""

import random

from seeds import fresh_seed
from tiny_engine import make_request
from tiny_models import tiny_tokenizer

from ladle.server.engine.requests.answer import Answer
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.thinking import Thinking, Thought, ThoughtPhase

WORDS = ["rain", " </", "think", "é", "雨", "🌧", "<", "\n", "</thin k>", " the"]


def _split(tokens: list[int], thinking: Thinking) -> tuple[list[int], list[int]]:
    """Thought and answer of a text that has come to its end."""
    if not thinking.opened:
        if tuple(tokens[: len(thinking.open)]) != thinking.open:
            return [], tokens
        tokens = tokens[len(thinking.open) :]
    size = len(thinking.close)
    for place in range(len(tokens) - size + 1):
        if tuple(tokens[place : place + size]) == thinking.close:
            return tokens[:place], tokens[place + size :]
    return tokens, []


def test_against_a_search() -> None:
    """Few token ids, so that tags begin, break off and overlap all the time; with budgets what comes is within them."""
    rng = random.Random(fresh_seed())
    for _ in range(600):
        tag = [tuple(rng.randrange(3) for _ in range(rng.randint(1, 3))) for _ in range(3)]
        budget = rng.choice([None, 0, 1, rng.randint(2, 9)])
        message = () if budget is None else (7,) * rng.randint(0, 2)
        thinking = Thinking(tag[0], tag[1], budget, message, rng.random() < 0.5)
        thought, tokens, free = Thought(thinking), [], 0
        placed = []
        for _ in range(rng.randint(1, 30)):
            forced, inside = thought.forced, thought.phase is ThoughtPhase.INSIDE
            tokens.append(rng.randrange(3) if forced is None else forced)
            free += inside and forced is None
            placed.append(thought.push(tokens[-1]))
        assert Thought(thinking).follow(tokens[:5]).follow(tokens).phase is thought.phase
        count, start = thought.tokens, thought.start
        placed.append(thought.finish())
        said = [token for part in placed for token in part.thought]
        answer = [token for part in placed for token in part.answer]
        expected = _split(tokens, thinking)
        if thought.forced is not None:  # what is cut within the tag that it has to write
            assert expected[0][: len(said)] == said and len(expected[0]) - len(said) < len(thinking.close)
        else:
            assert (said, answer) == expected, (tokens, thinking)
        assert budget is None or (free <= budget and len(said) <= budget + len(message))
        if thought.phase is ThoughtPhase.AFTER:
            assert count == len(said) and tokens[start:] == answer


def test_texts_and_characters_that_are_cut() -> None:
    """Nothing of a text is lost but the tags; half a character that a budget leaves is shown as U+FFFD."""
    rng, tokenizer = random.Random(fresh_seed()), tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    for _ in range(60):
        said, told = ("".join(rng.choices(WORDS, k=rng.randint(0, 6))) for _ in range(2))
        opened, budget = rng.random() < 0.5, rng.choice([None, rng.randint(0, 12)])
        thinking = Thinking(ids("<think>"), ids("</think>"), budget, (), opened)
        tokens = [*(() if opened else thinking.open), *ids(said), *thinking.close]
        request = make_request("r", ids("Why?"), max_tokens=200)
        request = GenerationRequest("r", request.prompt, request.plan, request.sampling, thinking=thinking)
        answer, thought, outputs = Answer(request, tokenizer, frozenset({2})), Thought(thinking), []
        while thought.phase is not ThoughtPhase.AFTER:
            token = tokens[len(outputs)] if thought.forced is None else thought.forced
            thought.push(token)
            outputs.append(answer.push(token, len(outputs) + 1, 0, 0.0, (), None))
        for token in (*ids(told), 2):
            outputs.append(answer.push(token, len(outputs) + 1, 0, 0.0, (), None))
        kept = ids(said)[: outputs[-1].reasoning_tokens]
        assert "".join(output.reasoning or "" for output in outputs) == tokenizer.decode(kept)
        assert "".join(output.text for output in outputs) == told and outputs[-1].finish_reason == "stop"
