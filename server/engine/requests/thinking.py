"""The thought in front of an answer: where a continuation stands in it, and which tokens end one that is long enough.

That a thought may be cut and answered from is TrimR's finding (arXiv 2505.17155), which lets a verifier say where; that
the base is asked in its place, a budget in tokens with a message in front of the closing tag, and the rules below, are
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum

from ladle.guidance.plan import PromptView


@dataclass(frozen=True)
class Verifier:
    """Ends a thought that holds the answer already.

    Where a sentence or a line of the thought ends, and the model has written at least ``every`` tokens of it since the
    last time, the base is asked a question about the thought so far. It ends there, as where its budget is used up,
    where p(yes) / (p(yes) + p(no)) > ``above``.

    Attributes:
        every, above: see above.
        question: a view of the prompt of kind ``doubt``.
    """

    every: int
    above: float
    question: PromptView


@dataclass(frozen=True)
class Thinking:
    """How a request thinks.

    A tag is recognised as the very token ids that the tokenizer makes of it by itself.

    Attributes:
        open: token ids of the tag that opens a thought, at least one.
        close: token ids of the tag that ends it, at least one.
        budget: most tokens that the model may write between the tags, those of a closing tag that it has begun and not
            finished included; None for any number.
        message: token ids that come in front of the closing tag where the budget is used up.
        opened: whether the prompt ends within a thought.
        verifier: what else may end it.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]
    budget: int | None = None
    message: tuple[int, ...] = ()
    opened: bool = False
    verifier: Verifier | None = None


class ThoughtPhase(Enum):
    """Where a continuation stands: nothing but a part of the opening tag is there, within the thought, in the
    answer."""

    BEFORE = 0
    INSIDE = 1
    AFTER = 2


@dataclass(frozen=True)
class Placed:
    """Tokens of which it is known now where they belong; those of a tag belong to neither.

    Attributes:
        thought: ids of the thought's tokens.
        answer: ids of the answer's.
        own: whether the token that came last is the answer's; what may become the opening tag counts as that.
    """

    thought: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    own: bool = True


class Thought:
    """One continuation and its thought: a fold over its tokens, so that it can be taken up from any text so far."""

    def __init__(self, thinking: Thinking) -> None:
        self._thinking = thinking
        self.phase = ThoughtPhase.BEFORE
        self.tokens = 0
        """How many tokens of the thought there are, a message included, of the tags none."""
        self.start = 0
        """With phase AFTER, index of the answer's first token."""
        self._seen = 0
        self._held: list[int] = []  # what may become the tag that comes next
        self._since = 0  # tokens of the model since the thought was opened
        self._script: list[int] | None = None  # what ends the thought, from the moment it is decided
        if thinking.opened:
            self._begin()

    def copy(self) -> Thought:
        """One that goes on from here by itself."""
        other = copy(self)
        other._held = list(self._held)
        other._script = None if self._script is None else list(self._script)
        return other

    def follow(self, output: Sequence[int]) -> Thought:
        """Take in the tokens of ``output``, the whole continuation, that are new."""
        for index in range(self._seen, len(output)):
            self.push(output[index])
        return self

    @property
    def forced(self) -> int | None:
        """The only token that may come next; None where the model decides."""
        return self._script[0] if self._script else None

    @property
    def written(self) -> int:
        """How many tokens the model has written since the thought was opened."""
        return self._since

    @property
    def may_end(self) -> bool:
        """Whether a budget that ends here would put the message and the whole tag next."""
        return self.phase is ThoughtPhase.INSIDE and not self._held and self._script is None

    @property
    def holds(self) -> bool:
        """Whether it is open where the last tokens belong."""
        return bool(self._held)

    @property
    def may_answer(self) -> bool:
        """Whether the next token may be the answer's own."""
        return self.phase is ThoughtPhase.AFTER or (self.phase is ThoughtPhase.BEFORE and not self._held)

    @property
    def opening(self) -> int | None:
        """The token that would begin the thought or go on with its tag; None once it is open, or never will be."""
        return self._thinking.open[len(self._held)] if self.phase is ThoughtPhase.BEFORE else None

    def answers(self, token: int) -> bool:
        """Whether ``token``, if it came next, would be the answer's own; not for a tag's, nor for what may become
        one."""
        if self.phase is ThoughtPhase.BEFORE:
            return token != self.opening
        return self.phase is ThoughtPhase.AFTER

    def push(self, token: int) -> Placed:
        """Take in the next token."""
        self._seen += 1
        if self.phase is ThoughtPhase.AFTER:
            return Placed(answer=(token,))
        self._held.append(token)
        if self.phase is ThoughtPhase.BEFORE:
            return self._before()
        if self._script:
            return self._scripted(self._script.pop(0))
        return self._inside()

    def finish(self) -> Placed:
        """What was held back, when no more tokens come."""
        held, self._held = tuple(self._held), []
        if self.phase is ThoughtPhase.BEFORE:
            return Placed(answer=held)
        if self._script:
            return Placed(own=False)  # a part of the tag that would have been completed
        self.tokens += len(held)
        return Placed(thought=held, own=False)

    def _before(self) -> Placed:
        opening = self._thinking.open
        if tuple(self._held) == opening:
            self._held = []
            self._begin()
            return Placed(own=False)
        # A beginning of the opening tag: it is held until the next token decides.
        if opening[: len(self._held)] == tuple(self._held):
            return Placed(own=False)
        held, self._held = tuple(self._held), []
        self.phase = ThoughtPhase.AFTER
        return Placed(answer=held)

    def _begin(self) -> None:
        self.phase = ThoughtPhase.INSIDE
        self._limit()

    def _inside(self) -> Placed:
        """A token that the model chose: all but the longest tail that begins the closing tag is thought."""
        closing = self._thinking.close
        self._since += 1
        # The longest suffix of what is held that is a prefix of the closing tag may still become it; the rest is
        # thought.
        tail = next(n for n in range(len(closing), -1, -1) if n == 0 or tuple(self._held[-n:]) == closing[:n])
        released = tuple(self._held[: len(self._held) - tail])
        self._held = self._held[len(released) :]
        self.tokens += len(released)
        if tail == len(closing):
            self._end()
        else:
            self._limit()
        return Placed(thought=released, own=False)

    def _limit(self) -> None:
        """Decide how the thought ends, once its budget is used up: by the rest of a tag that is begun, else by the
        message and the tag."""
        thinking = self._thinking
        # A tag that the model has begun is completed; in the midst of plain thought the message comes first.
        if thinking.budget is not None and self._since >= thinking.budget:
            begun = len(self._held)
            self._script = [*thinking.close[begun:]] if begun else [*thinking.message, *thinking.close]

    def _scripted(self, token: int) -> Placed:
        """A token of what ends the thought: the message's are thought, the tag's are held."""
        assert self._held[-1] == token, "the mask leaves no other token"
        # More is left to come than the tag is long, so this token is still of the message.
        if len(self._held) + len(self._script or ()) > len(self._thinking.close):
            self._held = []
            self.tokens += 1
            return Placed(thought=(token,), own=False)
        if not self._script:
            self._end()
        return Placed(own=False)

    def _end(self) -> None:
        self.phase, self.start, self._held, self._script = ThoughtPhase.AFTER, self._seen, [], None
