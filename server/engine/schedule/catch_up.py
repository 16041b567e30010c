"""Lanes that lag behind: an expert with weights of its own computes what it missed once the router chooses it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import Chunk


@dataclass
class CatchUp:
    """What a step computes after the router has spoken.

    Attributes:
        chunks: what lanes lack, the token that is due among it.
        behind: sequences that get no token from this step, because an expert of theirs has missed more than a step
            computes; their router is asked again in the next one, and says the same.
    """

    chunks: list[Chunk] = field(default_factory=list)
    behind: set[Sequence] = field(default_factory=set)

    def decode_and_prefill(self) -> tuple[list[Lane], list[Chunk]]:
        """The lanes that lack but the last token, and the other chunks."""
        due = [chunk.final and chunk.count == 1 for chunk in self.chunks]
        # Lanes that lack one token go through the decode layout, which attends in one call for many of them.
        single = [chunk.lane for chunk, alone in zip(self.chunks, due, strict=True) if alone]
        return single, [chunk for chunk, alone in zip(self.chunks, due, strict=True) if not alone]

    def missed(self) -> dict[str, int]:
        """Tokens by expert that are computed later than they came; the one that is due is not late."""
        late: dict[str, int] = {}
        for chunk in self.chunks:
            name = chunk.lane.source.name
            late[name] = late.get(name, 0) + chunk.count - chunk.final
        return late


def plan_catch_up(scheduler: Scheduler, wanted: Mapping[Sequence, Seq[Lane]]) -> CatchUp:
    """How the lazy ones of the ``wanted`` lanes get their logits.

    A lane catches up in one chunk. Only where that exceeds the token budget of a step (a long prompt, never seen by
    this expert) it takes several; whoever has least to catch up goes first, so that one of these holds up nobody else.
    """
    catch_up = CatchUp()
    lazy = {sequence: [lane for lane in lanes if lane.lazy] for sequence, lanes in wanted.items()}
    for sequence, lanes in lazy.items():
        for lane in lanes:
            # What another request computed of this text under this expert's weights may be in the prefix cache.
            if scheduler.missing(sequence, lane) > BLOCK_SIZE:
                scheduler.reuse(sequence, lane)
    # A budget of its own: what the router has just asked for comes on top of the step that it was computed in.
    left = scheduler.max_batch_tokens
    lacking = {sequence: sum(scheduler.missing(sequence, lane) for lane in lanes) for sequence, lanes in lazy.items()}
    # Shortest first: a long prompt for one expert delays nobody who needs a few tokens.
    for sequence in sorted(lazy, key=lacking.__getitem__):
        # All lazy lanes of a sequence end in one step, or none: the draw needs the logits of every chosen expert.
        final = lacking[sequence] <= left
        if not final:
            catch_up.behind.add(sequence)
        for lane in lazy[sequence]:
            count = scheduler.missing(sequence, lane)
            # The last token is kept back: its logits are of use only together with the router's.
            count = count if final else min(count - 1, left)
            if count > 0:
                start = int(scheduler.table.computed[lane.row])
                catch_up.chunks.append(Chunk(sequence, lane, start, count, final))
                left -= count
    return catch_up
