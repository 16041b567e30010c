"""OpenAI's ``usage``, from what the sequences of a request have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired

from typing_extensions import TypedDict

from ladle.server.engine.requests.request import StepOutput


class PromptTokensDetails(TypedDict):
    """How many of the prompt tokens had their state reused."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """How many of the tokens stand between the tags of a thought."""

    reasoning_tokens: int


class Usage(TypedDict):
    """Token counts; ``completion_tokens_details`` where thoughts are told apart."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: NotRequired[CompletionTokensDetails]


def token_counts(prompts: int, cached: int, newest: Sequence[StepOutput], thinks: bool) -> Usage:
    """Token counts.

    Args:
        prompts: tokens of all prompts.
        cached: how many of them had their state reused.
        newest: the newest output of each sequence.
        thinks: whether thoughts are told apart, and so counted.
    """
    completion = sum(output.completion_tokens for output in newest)
    counts: Usage = {
        "prompt_tokens": prompts,
        "completion_tokens": completion,
        "total_tokens": prompts + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if thinks:
        counts["completion_tokens_details"] = {"reasoning_tokens": sum(output.reasoning_tokens for output in newest)}
    return counts
