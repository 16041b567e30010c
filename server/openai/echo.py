"""Echoed prompts: their text, their tokens and how likely each of them was."""

from __future__ import annotations

from collections.abc import Sequence

from ladle.guidance.plan import Plan
from ladle.merging.exceptions import InputError
from ladle.server.engine.requests.request import PromptToken
from ladle.server.engine.scores.prompt_scores import why_not
from ladle.server.fields.token_ids import TokenIds
from ladle.server.openai.text_offsets import Utf8Count
from ladle.server.prompts import Prompt
from ladle.server.replies.reply_types import CompletionLogprobs
from ladle.server.serving import Serving
from ladle.server.text.token_text import TokenText, finite


class Echo:
    """One prompt as the client sent it; ``text`` of token ids is what they stand for, special tokens by their names."""

    def __init__(self, tokens: TokenText, sent: str | TokenIds, ids: TokenIds, alternatives: int | None = None) -> None:
        """``alternatives``: how many are listed at most, where more are known."""
        self._tokens = tokens
        self._alternatives = alternatives
        self._ids = ids
        self.text = sent if isinstance(sent, str) else b"".join(map(tokens.raw, ids)).decode("utf-8", "replace")

    def logprobs(self, said: Sequence[PromptToken]) -> CompletionLogprobs:
        """``logprobs`` of the prompt; ``said`` of its tokens from the second on."""
        tokens, top = self._tokens, [None, *(entry.top[: self._alternatives] for entry in said)]
        alternatives: list[dict[str, float] | None] = [
            None if best is None else alternatives_of(tokens, best, token, entry.logprob)
            for token, best, entry in zip(self._ids, top, [PromptToken(0.0, ()), *said], strict=True)
        ]
        return {
            "tokens": [tokens.key(token) for token in self._ids],
            "token_logprobs": [None, *(finite(entry.logprob) for entry in said)],
            "top_logprobs": alternatives,
            "text_offset": self._offsets(),
        }

    def _offsets(self) -> list[int]:
        """Where each token begins in ``text``. What the tokenizer put in front of it, such as a token that begins every
        text or a space, takes no room."""
        offsets, place = [], 0
        count = Utf8Count()
        for token in self._ids:
            raw = self._tokens.raw(token)
            offsets.append(min(len(self.text), place + count.given_up(raw)))
            piece = count.push(raw)
            if not self.text.startswith(piece, place):
                piece = "" if self._tokens.is_special(token) else piece.removeprefix(" ")
            place = min(len(self.text), place + len(piece))
        return offsets


def alternatives_of(
    tokens: TokenText, top: Sequence[tuple[int, float]], chosen: int, logprob: float
) -> dict[str, float]:
    """One position's ``top_logprobs``, best first. As in OpenAI's API the chosen token is always among them, so there
    may be one more than asked for."""
    best = {tokens.key(token): finite(value) for token, value in reversed(top)}
    return {**dict(reversed(best.items())), tokens.key(chosen): finite(logprob)}


def echoes(
    serving: Serving,
    plan: Plan,
    sent: Sequence[str | TokenIds],
    prompts: Sequence[Prompt],
    judged: bool,
    max_tokens: int,
    alternatives: int | None = None,
) -> list[Echo]:
    """The echo of every prompt; ``judged``: with logprobs.

    Raises:
        InputError: field ``echo``: under this plan there are no log-probabilities of a prompt, or no empty answer.
    """
    reason = why_not(plan)
    if reason and (judged or max_tokens == 0):
        what = "logprobs" if judged else "max_tokens: 0"
        reason = f"method {plan.method} {reason}, which leaves a prompt without logprobs"
        raise InputError("echo", True, f"false, or true without {what}", reason)
    pairs = zip(sent, prompts, strict=True)
    return [Echo(serving.tokens, text, prompt.ids, alternatives) for text, prompt in pairs]
