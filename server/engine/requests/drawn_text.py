"""Texts that grow side by side: a tree of blocks, each of which was drawn after the one above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ladle.server.engine.requests.answer import Answer
from ladle.server.engine.requests.request import Block, StepOutput


@dataclass(eq=False)
class DrawnText:
    """A text so far: its last block, and the text in front of it.

    Attributes:
        answer: makes text of tokens, from behind the last one on.
        above: the text that its last block was drawn after; None for the text that nothing was drawn of yet.
        outputs: of the last block, as a client may see them.
        tokens: all tokens.
        draws: how many continuations of ``above`` were drawn.
        entropy: of the last block's first token, where it was asked for.
        parts: what each source that judges has said of it, where that adds up over its blocks.
        judged: how many tokens that is said of.
        score: of the whole text; None where nobody was asked.
        blocks: how many blocks there are, those that nothing else was drawn beside left out.
        likely: over these blocks, the sum of the mean log-probabilities of their tokens.
    """

    answer: Answer
    above: DrawnText | None = None
    outputs: list[StepOutput] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    draws: int = 1
    entropy: float | None = None
    parts: tuple[float, ...] = ()
    judged: int = 0
    score: float | None = None
    blocks: int = 0
    likely: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether no more tokens can come."""
        return bool(self.outputs) and self.outputs[-1].finish_reason is not None

    @property
    def whole(self) -> bool:
        """Whether all that was drawn is there to be shown: nothing that it is judged with lies behind a stop string."""
        before = 0 if self.above is None else len(self.above.tokens)
        return len(self.tokens) == before + len(self.outputs)

    def next(self) -> DrawnText:
        """A text that begins a block behind this one."""
        return DrawnText(
            self.answer.copy(),
            above=self,
            tokens=list(self.tokens),
            parts=self.parts,
            judged=self.judged,
            blocks=self.blocks,
            likely=self.likely,
        )

    def push(self, output: StepOutput) -> bool:
        """Add a token that was drawn; whether the text ends with it."""
        self.tokens.append(output.token)
        # Counts go on from the text above, so that length and least length are those of the whole answer.
        pushed = self.answer.push(
            output.token,
            len(self.tokens),
            output.cached_tokens,
            output.logprob,
            output.top,
            output.trace,
            output.expert,
            # A draw has no stop strings, so that it stops where the text or the grammar ends.
            ended=output.finish_reason == "stop",
        )
        self.outputs.append(pushed)
        return pushed.finish_reason is not None

    @property
    def lineage(self) -> list[DrawnText]:
        """The texts that it goes on from, the first one first, and itself."""
        texts: list[DrawnText] = []
        text: DrawnText | None = self
        while text is not None:
            texts.append(text)
            text = text.above
        return texts[::-1]

    def shown(self, start: int, stop: int, told: bool) -> list[StepOutput]:
        """The outputs of the tokens from ``start`` on and before ``stop``; with ``told``, the first one of each block
        says how that was chosen."""
        outputs: list[StepOutput] = []
        begins = 0
        # ``begins`` is the index, in the whole answer, of the first token of each block.
        for text in self.lineage:
            for index, output in enumerate(text.outputs, start=begins):
                if not start <= index < stop:
                    continue
                if told and index == begins:
                    output = replace(output, block=Block(text.draws, text.score, text.entropy))
                outputs.append(output)
            begins += len(text.outputs)
        return outputs


def distinct(texts: Iterable[DrawnText]) -> Iterator[DrawnText]:
    """The first of those that have the same tokens, in order."""
    seen: set[tuple[int, ...]] = set()
    for text in texts:
        if (tokens := tuple(text.tokens)) not in seen:
            seen.add(tokens)
            yield text


def in_common(texts: list[DrawnText]) -> int:
    """How many tokens at their beginning ``texts``, at least one, have from the very same blocks."""
    shared = 0
    # Level by level from the root of the tree: texts agree as long as they go on from the same node, not merely from
    # equal tokens, because blocks report how they were chosen.
    for level in zip(*(text.lineage for text in texts), strict=False):
        if any(text is not level[0] for text in level):
            break
        shared = len(level[0].tokens)
    return shared
