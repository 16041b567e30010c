"""``prompt_logprobs`` of answers, in the form that vLLM gave it."""

from __future__ import annotations

from ladle.server.fields.token_ids import TokenIds
from ladle.server.replies.choices import Choice
from ladle.server.replies.reply_types import PromptLogprob
from ladle.server.text.token_text import TokenText, finite


def prompt_report(
    tokens: TokenText, ids: TokenIds, choice: Choice, alternatives: int
) -> list[dict[str, PromptLogprob] | None]:
    """What the model would have said at every token of a prompt, by token id: that token, and the best others. None for
    the first, before which there is nothing.

    Args:
        choice: an answer to the prompt, whose first output says it.
        alternatives: how many of the best tokens there are besides the prompt's own.
    """
    said = choice.outputs[0].prompt or ()
    report: list[dict[str, PromptLogprob] | None] = [None]
    for token, entry in zip(ids[1:], said, strict=True):
        own: PromptLogprob = {"logprob": finite(entry.logprob), "rank": entry.rank, "decoded_token": tokens.text(token)}
        ranked = {str(token): own}
        for rank, (other, logprob) in enumerate(entry.top[:alternatives], start=1):
            ranked.setdefault(
                str(other), {"logprob": finite(logprob), "rank": rank, "decoded_token": tokens.text(other)}
            )
        report.append(ranked)
    return report
