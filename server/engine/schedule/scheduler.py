"""Which tokens the next step computes: decode first, then prefill in fair shares, within one token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from itertools import islice

from ladle.server.engine.kv.block_manager import BlockManager, OutOfBlocks
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.sequence import Change, Lane, Sequence
from ladle.server.engine.schedule.prefill_pace import PrefillPace
from ladle.server.engine.schedule.step_plan import Chunk, StepPlan


class Scheduler:
    """Admits waiting sequences first come first served, grows their block tables, preempts the youngest when KV is out.

    judged_rows: logit rows of prompt tokens that a step may hold at once; at least as many as a sequence has lanes.
    ``ready(sequence)`` says whether the weights of a sequence can be used now (materialised ones may still be merging);
    one that is not ready is passed over, not waited for.
    """

    def __init__(
        self,
        blocks: BlockManager,
        table: LaneTable,
        max_sequences: int,
        max_batch_tokens: int,
        prefix_cache: bool = True,
        ready: Callable[[Sequence], bool] = lambda sequence: True,
        judged_rows: int = 1 << 20,
    ) -> None:
        self.blocks = blocks
        self.table = table
        self.max_sequences = max_sequences
        self.max_batch_tokens = max_batch_tokens
        self.prefix_cache = prefix_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.judged_rows = judged_rows
        self.pace = PrefillPace()
        self._ready = ready
        self._admitted: list[Sequence] = []
        self._fresh: list[int] = []
        self._slots = list(range(max_sequences - 1, -1, -1))

    @staticmethod
    def blocks_for(sequence: Sequence, tokens: int) -> int:
        """Blocks that ``sequence`` holds when its output is ``tokens`` long."""
        return sum(
            -(-(len(lane.prompt) + tokens) // BLOCK_SIZE) + sequence.scratch_blocks(lane) for lane in sequence.lanes
        )

    # -- what the engine calls ------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        (self.waiting.appendleft if sequence.ahead else self.waiting.append)(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take ``sequence`` out, wherever it stands, and give back all it holds."""
        sequence.finished = True
        if sequence in self.running:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def change(self, sequence: Sequence, change: Change) -> None:
        """Let ``sequence`` go on under another plan. What runs is set back, as by preemption, and its text so far is
        computed anew on the new lanes; what waits keeps its place."""
        if sequence in self.running:
            self._set_back(sequence)
        sequence.follow(change)

    def take_admitted(self) -> list[Sequence]:
        """The sequences that got a slot since the last call, those taken up again after preemption among them."""
        admitted, self._admitted = self._admitted, []
        return [sequence for sequence in admitted if sequence.slot is not None]

    def take_fresh(self) -> list[int]:
        """The blocks handed out since the last call, which hold what their last owners left."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def schedule(self) -> StepPlan:
        """Lay out the next step; empty when nothing can run."""
        plan = StepPlan()
        budget = self.max_batch_tokens
        # Decode goes first: every running sequence past its prompt computes one token per eager lane, each into a block
        # of its lane's block table. Where the pool has none left, the youngest sequence gives its blocks back.
        for sequence in list(self.running):
            if sequence.slot is None or not self._is_decoding(sequence):
                continue
            if self._grow_or_preempt(sequence):
                plan.decode.append(sequence)
                budget -= len(sequence.eager)
        # Growing one sequence may have preempted another that was already planned; it has lost its slot.
        plan.decode = [sequence for sequence in plan.decode if sequence.slot is not None]
        plan.lanes = [lane for sequence in plan.decode for lane in sequence.eager if self.missing(sequence, lane)]
        # What is left goes to prompts, those that are admitted now among them: as much as others can wait for.
        if plan.decode and budget > 0:
            budget = self.pace.room(budget, max(len(s.eager) for s in (*self.running, *islice(self.waiting, 1))))
        self._admit(budget)
        self._share_prefill(plan, budget)
        # Sampled are the sequences whose last token is computed by this step, on all of their lanes.
        finishing = [c.sequence for c in plan.chunks if c.final]
        plan.sampling = [*plan.decode, *dict.fromkeys(finishing)]
        return plan

    def advance(self, plan: StepPlan, behind: Set[Sequence] = frozenset()) -> None:
        """Record that ``plan`` was computed: lengths grow, and full blocks become reusable. The last token of sequences
        that are ``behind`` counts as not computed: its logits are wanted once more."""
        computing = set(map(id, plan.lanes))
        for sequence in plan.decode:
            for lane in sequence.lanes:
                if id(lane) in computing and sequence not in behind:
                    self.extend(sequence, lane, 1)
        for chunk in plan.chunks:
            again = chunk.final and chunk.sequence in behind
            self.extend(chunk.sequence, chunk.lane, chunk.count - again)

    def extend(self, sequence: Sequence, lane: Lane, count: int) -> None:
        """Record that the state of ``count`` more tokens of ``lane`` exists."""
        assert lane.row is not None
        before = int(self.table.computed[lane.row])
        self.table.computed[lane.row] = before + count
        if (before + count) // BLOCK_SIZE > before // BLOCK_SIZE:
            self._publish(sequence, lane)

    def reuse(self, sequence: Sequence, lane: Lane) -> None:
        """Take over blocks of ``lane``'s prefix that others have computed since it was admitted."""
        assert lane.row is not None
        if not self.prefix_cache:
            return
        matched = self.blocks.match(self._reusable_hashes(sequence, lane))
        count, before = len(matched), int(self.table.computed[lane.row])
        if count * BLOCK_SIZE <= before:
            self.blocks.release(matched)
            return
        self.blocks.release(lane.blocks[:count])
        lane.blocks[:count] = matched
        lane.published = count
        self.table.blocks[lane.row, :count] = matched
        self.table.computed[lane.row] = count * BLOCK_SIZE
        self.prefix_hits += count * BLOCK_SIZE - before

    def held_blocks(self) -> Iterator[list[int]]:
        """The block table of every lane, for integrity checks."""
        return (lane.blocks + lane.scratch for sequence in (*self.running, *self.waiting) for lane in sequence.lanes)

    def check_integrity(self) -> None:
        """Raise AssertionError unless lane rows and slots add up."""
        for what, held, free, total in (
            ("lane rows", [lane.row for s in self.running for lane in s.lanes], self.table.idle, self.table.capacity),
            ("slots", [s.slot for s in self.running], self._slots, self.max_sequences),
        ):
            if sorted([*(row for row in held if row is not None), *free]) != list(range(total)):
                raise AssertionError(f"{what}: {held} are held and {free} are free, of {total}")
        stray = [s for s in self.waiting if s.slot is not None or any(lane.row is not None for lane in s.lanes)]
        if stray:
            raise AssertionError(f"{len(stray)} waiting sequences hold slots or lane rows")

    # -- admission ------------------------------------------------------------------------------------------------

    def _admit(self, budget: int) -> None:
        # First come, first served, with one exception: who waits for weights, or for a prefix that is being computed,
        # is passed over and keeps its place. Who lacks lane rows or blocks holds up everybody behind it.
        passed_over = []
        while self.waiting and self._slots and budget > 0:
            sequence = self.waiting[0]
            if len(sequence.lanes) > self.table.free:
                break
            if not self._ready(sequence) or self._soon_cached(sequence):
                passed_over.append(self.waiting.popleft())
                continue
            if not self._take(sequence):
                break
            self.waiting.popleft()
            self.running.append(sequence)
            budget -= len(sequence.eager)
        self.waiting.extendleft(reversed(passed_over))

    def _soon_cached(self, sequence: Sequence) -> bool:
        """Whether a running prefill is about to publish a block this one starts with: waiting is cheaper than
        computing.

        The n choices of one request arrive together; all but the first wait for its prompt.
        """
        if not self.prefix_cache:
            return False
        lane = sequence.lanes[0]
        hashes = self._reusable_hashes(sequence, lane)
        known = self.blocks.known(hashes)
        if known == len(hashes):
            return False
        return any(
            other.hashes.upto(other.prompt, known + 1)[known : known + 1] == [hashes[known]]
            for running in self.running
            if not running.output and not self._is_decoding(running)
            for other in running.lanes
            if len(other.prompt) >= (known + 1) * BLOCK_SIZE
        )

    def _take(self, sequence: Sequence) -> bool:
        """Rows, reused prefixes and room for the whole prompt; False (and nothing taken) when blocks are short."""
        # Blocks whose hashes the prefix cache knows are shared; the rest of the prompt has to find room, with one more
        # place in a lane that scores and scratch blocks for its candidates.
        wanted = 0
        known = [self._reusable_hashes(sequence, lane) if self.prefix_cache else [] for lane in sequence.lanes]
        reused = [self.blocks.match(hashes) for hashes in known]
        if sequence.judging:
            # All lanes begin at one place: what is said of a token needs the logits of all of them.
            shared = min(map(len, reused))
            for matched in reused:
                self.blocks.release(matched[shared:])
                del matched[shared:]
        for lane, matched in zip(sequence.lanes, reused, strict=True):
            wanted += -(-(sequence.length(lane) + sequence.draws_on(lane)) // BLOCK_SIZE) - len(matched)
            wanted += sequence.scratch_blocks(lane)
        # One block a running lane is kept free, so that those in decode do not preempt at once what was just admitted.
        reserve = sum(len(other.lanes) for other in self.running)
        if wanted + reserve > self.blocks.free and (self.running or wanted > self.blocks.free):
            for matched in reused:
                self.blocks.release(matched)
            return False
        # Nothing fails from here on: each lane gets its row, its shared blocks, and the token that it continues from.
        for lane, matched in zip(sequence.lanes, reused, strict=True):
            lane.row = self.table.take(lane.coefficients)
            lane.blocks = matched
            lane.published = len(matched)
            self.table.blocks[lane.row, : len(matched)] = matched
            self.table.computed[lane.row] = len(matched) * BLOCK_SIZE
            length = sequence.length(lane)
            self.table.last[lane.row] = sequence.tokens(lane, length - 1, length)[0]
            lane.scratch = [self.blocks.allocate() for _ in range(sequence.scratch_blocks(lane))]
            self._fresh.extend(lane.scratch)
            self.prefix_queries += sequence.length(lane)
            self.prefix_hits += len(matched) * BLOCK_SIZE
        if not sequence.restarts:
            sequence.cached_tokens = len(reused[0]) * BLOCK_SIZE
        sequence.slot = self._slots.pop()
        self._admitted.append(sequence)
        return True

    def _reusable_hashes(self, sequence: Sequence, lane: Lane) -> list[bytes]:
        """Hashes of the full blocks that may be reused: all but the one with the last token, whose logits are
        needed.
        """
        length = sequence.request.sampling.judged_from if sequence.judging else sequence.length(lane)
        return lane.hashes.upto(sequence.tokens(lane, 0, length), (length - 1) // BLOCK_SIZE)

    # -- progress -------------------------------------------------------------------------------------------------

    def missing(self, sequence: Sequence, lane: Lane) -> int:
        """Tokens of ``lane`` that are not computed."""
        assert lane.row is not None
        return sequence.length(lane) - int(self.table.computed[lane.row])

    def _is_decoding(self, sequence: Sequence) -> bool:
        return (
            bool(sequence.output)
            and sequence.draws
            and all(
                self.missing(sequence, lane) == 1 or (lane.scores and self.missing(sequence, lane) == 0)
                for lane in sequence.eager
            )
        )

    def _share_prefill(self, plan: StepPlan, budget: int) -> None:
        """Split what is left of the budget evenly over the prefilling sequences; what one leaves, the next ones get."""
        decoding = set(map(id, plan.decode))
        filling = [s for s in self.running if id(s) not in decoding and not self._is_decoding(s)]
        for position, sequence in enumerate(filling):
            if sequence.slot is None or budget <= 0:
                continue
            # At least the last token of every lane, which are computed together.
            share = max(BLOCK_SIZE, len(sequence.eager), budget // (len(filling) - position))
            fill = self._fill_judged if sequence.judging else self._fill
            budget -= fill(plan, sequence, min(share, budget))

    def _fill(self, plan: StepPlan, sequence: Sequence, share: int) -> int:
        """Plan up to ``share`` tokens of ``sequence``. The last token of every lane is computed in one step, because
        the combined score needs the logits of all of them together; lanes that score may be there before. Returns the
        tokens planned."""
        # Chunked prefill: either all that the eager lanes lack fits into the share, and the sequence is sampled from
        # this step, or lanes advance as far as the share lasts, and keep their last token back.
        missing = [0 if lane.lazy else self.missing(sequence, lane) for lane in sequence.lanes]
        final = sum(missing) <= share
        chunks = []
        left = share
        for lane, lacks in zip(sequence.lanes, missing, strict=True):
            if lane.lazy:
                # Whatever it will have to catch up finds room.
                if final and not self.grow(lane, sequence.length(lane)):
                    break
                continue
            # Where values of the text itself are asked for, the last token's state is what they are taken from.
            early = lane.scores and sequence.draws
            count = lacks if final else min(lacks if early else lacks - 1, left)
            assert lane.row is not None
            start = int(self.table.computed[lane.row])
            if not self.grow(lane, start + count + (final and sequence.draws_on(lane))):
                # The prompt was admitted with room to spare, since taken by decode: wait for blocks to come back.
                break
            if count <= 0:
                continue
            chunks.append(Chunk(sequence, lane, start, count, final))
            left -= count
        else:
            plan.chunks.extend(chunks)
            return share - left
        # A lane found no block. Chunks that do not end in sampled tokens stand by themselves; final ones would be
        # sampled without the others, so they wait. Where the step would be empty, the youngest sequence makes room.
        plan.chunks.extend(chunk for chunk in chunks if not chunk.final)
        if not plan and len(self.running) > 1:
            self._preempt(self.running[-1])
        return share - left

    def _fill_judged(self, plan: StepPlan, sequence: Sequence, share: int) -> int:
        """Plan the same tokens of every lane, because what is said of a token of the prompt needs the logits of all
        lanes together. Returns the tokens planned."""
        room = self.judged_rows - sum(chunk.count for chunk in plan.chunks if chunk.judged)
        missing = min(self.missing(sequence, lane) for lane in sequence.lanes)
        count = min(missing, min(share, room) // len(sequence.lanes))
        if count <= 0:
            return 0
        chunks = []
        for lane in sequence.lanes:
            start = sequence.length(lane) - missing
            if not self.grow(lane, start + count):
                if not plan and len(self.running) > 1:
                    self._preempt(self.running[-1])
                return 0
            chunks.append(Chunk(sequence, lane, start, count, count == missing, judged=True))
        plan.chunks.extend(chunks)
        return count * len(chunks)

    def _grow_or_preempt(self, sequence: Sequence) -> bool:
        """Room for one more token on every lane, and on those that score for the candidate that will be drawn; taken
        from the youngest running sequence if need be."""
        for lane in sequence.lanes:
            while sequence.slot is not None:
                if self.grow(lane, sequence.length(lane) + lane.scores):
                    break
                self._preempt(self.running[-1])
        return sequence.slot is not None

    def grow(self, lane: Lane, length: int) -> bool:
        """Blocks for ``length`` tokens; False when the pool has not enough (what was taken stays with the lane)."""
        assert lane.row is not None
        while len(lane.blocks) * BLOCK_SIZE < length:
            try:
                block = self.blocks.allocate()
            except OutOfBlocks:
                return False
            self.table.blocks[lane.row, len(lane.blocks)] = block
            lane.blocks.append(block)
            self._fresh.append(block)
        return True

    def _publish(self, sequence: Sequence, lane: Lane) -> None:
        if not self.prefix_cache or lane.row is None:
            return
        full = int(self.table.computed[lane.row]) // BLOCK_SIZE
        if full > lane.published:
            hashes = lane.hashes.upto(sequence.tokens(lane, 0, full * BLOCK_SIZE), full)
            for position in range(lane.published, full):
                self.blocks.publish(lane.blocks[position], hashes[position])
            lane.published = full

    # -- giving back ----------------------------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; its state is computed anew (from reusable blocks where they survive)."""
        self._set_back(sequence)
        self.preemptions += 1

    def _set_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.restarts += 1
        self.waiting.appendleft(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        for lane in sequence.lanes:
            if lane.row is not None:
                self.table.give(lane.row)
                lane.row = None
            self.blocks.release(lane.blocks)
            self.blocks.release(lane.scratch)
            lane.blocks, lane.scratch = [], []
            lane.published = 0
        if sequence.slot is not None:
            self._slots.append(sequence.slot)
            sequence.slot = None
