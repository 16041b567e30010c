"""What one step computes: pure data, laid out by the scheduler and run by the model runner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ladle.server.engine.requests.sequence import Lane, Sequence


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens to compute: those of ``lane`` from ``start`` to ``start + count``.

    Attributes:
        sequence: whose lane it is.
        lane: where they are computed.
        start: position of the first one.
        count: how many they are.
        final: whether the logits of the last one are needed.
        judged: whether the logits of all of them are.
        drafted: what is held to follow them, computed with them; the logits of all of these are needed, too.
    """

    sequence: Sequence
    lane: Lane
    start: int
    count: int
    final: bool
    judged: bool = False
    drafted: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The position behind all of it, drafted tokens among them."""
        return self.start + self.count + len(self.drafted)

    @property
    def ids(self) -> list[int]:
        """The tokens of all of it."""
        return [*self.sequence.tokens(self.lane, self.start, self.start + self.count), *self.drafted]


@dataclass
class StepPlan:
    """What one step computes.

    Attributes:
        decode: the sequences that need one more token on their lanes.
        lanes: those of their lanes that compute one.
        chunks: prefill.
        sampling: the sequences that get a token from this step: first those in decode, then finished prefills.
        drafts: tokens that are held to come after the next one, by sequence in decode; computed with it.
    """

    decode: list[Sequence] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    sampling: list[Sequence] = field(default_factory=list)
    drafts: dict[Sequence, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.decode or self.chunks)

    def account(self) -> None:
        """Write the tokens of this step down with the requests that they are computed for: before it runs, because who
        leaves while it does has had them computed."""
        # A lane's tokens count by what is computed: prompts token by token, decode one for each lane, or its
        # candidates.
        for chunk in self.chunks:
            chunk.sequence.request.work.tokens += chunk.count
        account_tokens(self.decode)

    @property
    def sequences(self) -> list[Sequence]:
        return list(dict.fromkeys([*self.decode, *(chunk.sequence for chunk in self.chunks)]))


def account_tokens(sequences: Iterable[Sequence]) -> None:
    """Write one more token of each of ``sequences`` down with its request. Drafts that are not drawn are the server's
    own affair."""
    for sequence in sequences:
        sequence.request.work.tokens += sum(max(1, sequence.candidates * lane.scores) for lane in sequence.lanes)
