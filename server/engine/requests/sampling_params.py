"""How the next token is drawn, as the engine sees it: validated, plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """Sampling options of one request.

    The values are taken as already validated (the HTTP schemas do so); the engine applies them once, on the combined
    score, in the order penalties and bias, temperature, top-k, top-p, min-p.

    Attributes:
        max_tokens: most tokens to generate; 0 where only the prompt is asked about.
        temperature: 0 means greedy.
        dynatemp_range, dynatemp_exponent: the temperature follows the entropy within this range (0: it does not), see
            ``ladle.kernels.entropy_temperature``; only with a temperature above 0.
        top_p: the least probability mass that is kept; 1 means off.
        top_k: 0 means off.
        min_p: the least probability that is kept, as a share of the greatest one; 0 means off.
        repetition_penalty: scores above 0 of tokens that are there are divided by it, others multiplied; 1 means off.
        presence_penalty, frequency_penalty: subtracted once, and per time, from scores of tokens of the output; 0 is
            off.
        logit_bias: (token id, bias in logits).
        stop: strings that end the text and are not part of it; like stop_token_ids they do nothing within a thought.
        seed: with the position, it decides every draw.
        logprobs: how many top alternatives to report at each position; None reports none.
        prompt_logprobs: report the prompt's own tokens too, all but the first, as if they had been drawn.
        judged_from: the first of the prompt's tokens that is reported; the state of those before may be reused.
        prompt_alternatives: how many top alternatives to report at each of them; at least as many as ``logprobs``.
        ignore_eos: the token that ends a text is drawn like any other and ends nothing.
        min_tokens: so many tokens come before anything may end the text.
        stop_token_ids: tokens that end the text and are not part of it, whatever ignore_eos says.
        skip_special_tokens: special tokens give no text; else their names, but not that of the token that ends a text.
        include_stop: the text holds the stop string or the token of stop_token_ids that ended it.
    """

    max_tokens: int
    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    judged_from: int = 1
    prompt_alternatives: int = 0
    ignore_eos: bool = False
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    skip_special_tokens: bool = True
    include_stop: bool = False

    @property
    def penalises(self) -> bool:
        """Whether tokens that came before count."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
