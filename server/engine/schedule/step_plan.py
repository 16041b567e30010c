"""What one step computes: pure data, laid out by the scheduler and run by the model runner."""

from __future__ import annotations

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
    """

    sequence: Sequence
    lane: Lane
    start: int
    count: int
    final: bool
    judged: bool = False


@dataclass
class StepPlan:
    """What one step computes.

    Attributes:
        decode: the sequences that need one more token on their lanes.
        lanes: those of their lanes that compute one.
        chunks: prefill.
        sampling: the sequences that get a token from this step: first those in decode, then finished prefills.
    """

    decode: list[Sequence] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    sampling: list[Sequence] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decode or self.chunks)

    def account(self) -> None:
        """Write the tokens of this step down with the requests that they are computed for: before it runs, because who
        leaves while it does has had them computed."""
        for chunk in self.chunks:
            chunk.sequence.request.work.tokens += chunk.count
        for sequence in self.decode:
            sequence.request.work.tokens += sum(max(1, sequence.candidates * lane.scores) for lane in sequence.lanes)

    @property
    def sequences(self) -> list[Sequence]:
        return list(dict.fromkeys([*self.decode, *(chunk.sequence for chunk in self.chunks)]))
