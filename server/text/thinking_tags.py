"""The tags around the thought in front of an answer, as a family's manifest or its chat template has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ladle.merging.family.manifest_tables import ThinkingTable, VerifierTable

_USUAL = ("<think>", "</think>")
_BUDGETS = {"minimal": 128, "low": 512, "medium": 2048, "high": 8192}


@dataclass(frozen=True)
class ThinkingTags:
    """What tells thoughts apart.

    Attributes:
        open, close: the tags as text.
        open_ids, close_ids: the tokens that the tokenizer makes of each by itself.
        budgets: most tokens of a thought by reasoning effort.
        tokenizer: whose tokens they are.
        verifier: what may end thoughts where a request does not say; None where nothing does.
    """

    open: str
    close: str
    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    budgets: Mapping[str, int]
    tokenizer: PreTrainedTokenizerFast
    verifier: VerifierTable | None = None

    @classmethod
    def of(
        cls, table: ThinkingTable | None, tokenizer: PreTrainedTokenizerFast, vocabulary: int
    ) -> ThinkingTags | None:
        """The tags of ``[thinking]``, or ``<think>`` and ``</think>`` where the chat template names both; None without,
        or where their tokens are beyond the ``vocabulary``."""
        template = tokenizer.chat_template or ""
        source = template if isinstance(template, str) else "".join(template.values())
        if table is not None and table.open is not None and table.close is not None:
            tags = (table.open, table.close)
        elif all(tag in source for tag in _USUAL):
            tags = _USUAL
        else:
            return None
        encode = tokenizer.backend_tokenizer.encode
        opening, closing = (tuple(encode(tag, add_special_tokens=False).ids) for tag in tags)
        if not opening or not closing or max(*opening, *closing) >= vocabulary:
            return None
        budgets: dict[str, int] = dict(_BUDGETS)
        if table is not None:
            budgets.update((str(effort), budget) for effort, budget in table.budgets.items())
        return cls(*tags, opening, closing, budgets, tokenizer, None if table is None else table.verifier)

    def opened(self, prompt: Sequence[int], thought: bool) -> bool:
        """Whether ``prompt`` ends within a thought: it has an opening tag, no closing one after it, and nothing but
        spaces there; or, where it may hold a part of the ``thought``, whatever else."""
        start = _last(prompt, self.open_ids)
        if start is None:
            return False
        rest = prompt[start + len(self.open_ids) :]
        return _last(rest, self.close_ids) is None and (thought or not self.tokenizer.decode(list(rest)).strip())


def _last(ids: Sequence[int], tag: tuple[int, ...]) -> int | None:
    """Where ``tag`` begins in ``ids`` for the last time."""
    places = range(len(ids) - len(tag), -1, -1)
    matches = (place for place in places if ids[place] == tag[0] and tuple(ids[place : place + len(tag)]) == tag)
    return next(matches, None)
