"""Positions in grammars, each in one of a few worker processes; what a worker's end costs, and whom."""

from __future__ import annotations

import itertools
import logging
import select
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ladle.merging.exceptions import CodedText
from ladle.server.engine.grammars import wire
from ladle.server.engine.grammars.nursery import SLOTS, GrammarNursery, GrammarsUnavailable, WorkerProcess
from ladle.server.engine.grammars.spec import GrammarError, GrammarSpec, too_complex
from ladle.server.engine.grammars.wire import GrammarMessage

logger = logging.getLogger(__name__)

WORKERS = 8
"""Processes at once, unless more are needed for the number of positions."""
PATIENCE_S = 1.0
"""How long a step waits for what workers owe it, twice; ordinary masks take a tenth of a millisecond."""
_COMPILE_S = 20.0  # until a compilation is given up whose processor time is bounded besides
_LIVES = 3  # workers that a position may lose without its own doing


@dataclass(eq=False)
class Position:
    """A place in a grammar.

    Attributes:
        spec: of the grammar.
        tokens: consumed so far: what it takes to get there again.
        name: its number, which is the same in every worker.
        home: the worker that it lives in; None while it has none.
        slot: where in the shared memory of ``home`` its mask lies.
        state: one of the states of ``wire``; None while it is not known.
        ready: whether the mask of the tokens that may come next is there.
        lost: how often a worker has ended with it.
        error: why nothing can come next.
    """

    spec: GrammarSpec
    tokens: list[int]
    name: int
    home: Home | None = None
    slot: int = 0
    state: int | None = None
    ready: bool = False
    error: CodedText | None = None
    lost: int = 0

    @property
    def stopped(self) -> bool:
        """Whether the grammar has come to its end, so that no text can follow."""
        return self.error is None and self.state == wire.STOPPED


@dataclass(eq=False)
class Home:
    """A worker, and what it has.

    Attributes:
        worker: the process.
        positions: those that live in it, by name.
        specs: the grammars that it has compiled, and their numbers there.
        free: slots of its shared memory that no position has.
    """

    worker: WorkerProcess
    positions: dict[int, Position] = field(default_factory=dict)
    specs: dict[GrammarSpec, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=lambda: list(range(SLOTS)))


class GrammarPool:
    """Homes of positions. Positions are used by one thread, the engine's; grammars may be compiled on others.

    Args:
        on_crash: called with a grammar that ended its worker, the reason, and whether that was while it was compiled.
    """

    def __init__(self, nursery: GrammarNursery, on_crash: Callable[[GrammarSpec, str, bool], None]) -> None:
        self._nursery = nursery
        self._on_crash = on_crash
        self._homes: list[Home] = []  # the one used last comes last
        self._lock = threading.RLock()
        self._names = itertools.count(1)

    def compile(self, spec: GrammarSpec) -> None:
        """Find out whether ``spec`` can be followed, in a process in which nobody else's grammar lives.

        Raises:
            GrammarError: it cannot; the message is the reason.
            GrammarsUnavailable: there are no processes to compile in.
        """
        for life in range(_LIVES):
            # A fresh worker for each compilation: if the grammar ends its process, nobody else's position is in it.
            home = Home(self._nursery.fork())
            try:
                self._tell(home, spec)
                answer = home.worker.channel.receive(_COMPILE_S)
            except (EOFError, OSError):
                end = self._nursery.end_of(home.worker)
                self._nursery.release(home.worker)
                if end.guilty:
                    self._on_crash(spec, end.reason, True)
                    raise GrammarError(too_complex(end.reason), complex=True) from None
                logger.warning("a grammar worker was lost while it compiled: %s", end.reason)
                if life + 1 == _LIVES:
                    raise GrammarsUnavailable(end.reason) from None
                continue
            if answer is None:
                self._nursery.release(home.worker)
                raise GrammarError(too_complex("it takes too long"), complex=True)
            if answer.payload:
                self._nursery.release(home.worker)
                raise GrammarError.of_library(answer.payload.decode(errors="replace"))
            with self._lock:
                self._homes.append(home)
                self._shrink()
            return

    def start(self, spec: GrammarSpec, tokens: Iterable[int] = ()) -> Position:
        """A position behind ``tokens``; its mask is computed from now on."""
        position = Position(spec, list(tokens), next(self._names))
        self._place(position)
        return position

    def finish(self, position: Position) -> None:
        """Give up a position."""
        with self._lock:
            home, position.home = position.home, None
            if home is None:
                return
            home.positions.pop(position.name, None)
            home.free.append(position.slot)
            try:
                home.worker.channel.send(GrammarMessage(wire.CLOSE, position.name))
            except OSError:
                self._bury(home)
            self._shrink()

    def advance(self, moves: Sequence[tuple[Position, int]]) -> None:
        """Follow one token each; ``state`` and ``error`` of the positions say where that led. Their next masks are
        computed from now on."""
        steps: dict[Home, list[tuple[int, int]]] = {}
        for position, token in moves:
            if position.error is None:
                # The tokens are kept so that the position can be opened again elsewhere, if its worker is lost.
                position.tokens.append(token)
                position.state, position.ready = None, False
                assert position.home is not None
                steps.setdefault(position.home, []).append((position.name, token))
        # One message per worker with all of its moves; all workers compute before any answer is waited for.
        for home, pairs in steps.items():
            try:
                home.worker.channel.send(
                    GrammarMessage(wire.STEP, payload=b"".join(wire.MASKED.pack(*pair) for pair in pairs))
                )
            except OSError:
                self._bury(home)
        self._await([position for position, _ in moves], lambda position: position.state is not None)

    def masks(self, positions: Sequence[Position]) -> None:
        """Wait until the mask of each is ready, or its error known."""
        self._await(positions, lambda position: position.ready)

    def mask(self, position: Position) -> bytes:
        """The tokens that may come next, one bit each; of a position that is ready."""
        assert position.home is not None
        return position.home.worker.mask(position.slot)

    def drop_idle(self) -> None:
        """End the workers in which no position lives."""
        with self._lock:
            for home in [home for home in self._homes if not home.positions]:
                self._homes.remove(home)
                self._nursery.release(home.worker)

    def _await(self, positions: Sequence[Position], known: Callable[[Position], bool]) -> None:
        # Each round ends with an answer, or with the burial of workers that gave none; a position that was moved may be
        # unlucky again, so rounds are bounded.
        for _ in range(_LIVES + 1):
            # A process that was stopped for a while finds its time over when it goes on: it gets another chance.
            for _ in range(2):
                until = time.monotonic() + PATIENCE_S
                while waiting := [p for p in positions if p.error is None and not known(p)]:
                    homes = list(dict.fromkeys(p.home for p in waiting if p.home is not None))
                    if any([self._listen(home) for home in homes]):
                        continue
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    _until_one_speaks(homes, left)
                else:
                    return
            for home in {p.home for p in waiting if p.home is not None}:
                self._bury(home, "finding the next token takes too long")
        for position in positions:
            if position.error is None and not known(position):
                position.error = too_complex("finding the next token takes too long")

    def _listen(self, home: Home) -> bool:
        """Take what a worker has said, or notice that it is gone; whether there was either."""
        heard = False
        with home.worker.lock:
            try:
                while (message := home.worker.channel.receive(0)) is not None:
                    heard = True
                    self._heed(home, message)
            except (EOFError, OSError):
                self._bury(home)
                return True
        return heard

    def _heed(self, home: Home, message: GrammarMessage) -> None:
        position = home.positions.get(message.a) if message.kind in (wire.STATE, wire.MASK) else None
        if position is None:
            return
        # A STATE says where the tokens led, a MASK that the next mask lies in the shared memory; either may say why
        # not.
        position.state = message.b
        position.ready = message.kind == wire.MASK
        reason = message.payload.decode(errors="replace")
        if message.b == wire.FAILED:
            position.error = too_complex(reason)
        elif message.b == wire.REFUSED:
            # The mask allowed it, or nothing: a dead end that the library did not see when it compiled.
            position.error = too_complex(f"it came to a dead end: {reason}")

    def _place(self, position: Position) -> None:
        with self._lock:
            try:
                home = self._home_for(position.spec)
            except GrammarsUnavailable as error:
                position.error = CodedText("grammars_unavailable", f"there is no process for its grammar: {error}")
                logger.error("%s", position.error)
                return
            position.home, position.slot = home, home.free.pop()
            # Unknown again until the worker has said where the tokens led.
            position.state, position.ready = None, False
            home.positions[position.name] = position
            tokens = struct.pack(f"<{len(position.tokens)}I", *position.tokens)
            try:
                self._tell(home, position.spec)
                home.worker.channel.send(
                    GrammarMessage(wire.OPEN, position.name, home.specs[position.spec], position.slot, tokens)
                )
            except OSError:
                self._bury(home)

    def _home_for(self, spec: GrammarSpec) -> Home:
        roomy = [home for home in self._homes if home.free]
        # Preferred in this order: a worker that has compiled this grammar and serves others already, or while few are
        # busy any that has; when all are busy, the emptiest of them; an idle one that knows the grammar; a new one.
        own = [home for home in reversed(roomy) if spec in home.specs]
        busy = sum(1 for home in self._homes if home.positions)
        shared = [home for home in roomy if home.positions]
        home = next((home for home in own if home.positions or busy < WORKERS), None)
        if home is None and busy >= WORKERS and shared:
            home = min(shared, key=lambda other: len(other.positions))
        if home is None and own:
            home = own[0]
        if home is None:
            home = Home(self._nursery.fork())
            self._homes.append(home)
        else:
            self._homes.remove(home)
            self._homes.append(home)
        self._shrink(keep=home)
        return home

    def _tell(self, home: Home, spec: GrammarSpec) -> None:
        if spec not in home.specs:
            home.specs[spec] = name = next(self._names)
            home.worker.channel.send(GrammarMessage(wire.COMPILE, name, payload=f"{spec.kind}\n{spec.text}".encode()))

    def _shrink(self, keep: Home | None = None) -> None:
        """End workers that nobody lives in, the one used longest ago first, down to ``WORKERS``."""
        for home in list(self._homes):
            if len(self._homes) <= WORKERS:
                return
            if not home.positions and home is not keep:
                self._homes.remove(home)
                self._nursery.release(home.worker)

    def _bury(self, home: Home, slow: str | None = None) -> None:
        """A worker has ended, or is ``slow`` and ended now: what it was at has failed, what else lived there moves."""
        with self._lock:
            if home not in self._homes:
                return
            self._homes.remove(home)
            kind, subject = home.worker.works_at()
            # Guilt is of what the worker was at when it ended: a grammar being compiled, or one position whose mask was
            # being computed. Everybody else is innocent and moves on, up to ``_LIVES`` times.
            guilty, reason = True, slow
            if slow is None:
                end = self._nursery.end_of(home.worker)
                guilty, reason = end.guilty, end.reason
            self._nursery.release(home.worker)
            spec = next((s for s, name in home.specs.items() if kind == wire.COMPILE and name == subject), None)
            logger.warning("a grammar worker with %d positions was lost: %s", len(home.positions), reason)
            for position in list(home.positions.values()):
                position.home = None
                own = position.spec == spec if kind == wire.COMPILE else position.name == subject
                position.lost += 1
                if (guilty and own) or position.lost > _LIVES:
                    position.error = too_complex(str(reason))
                    if guilty and own:
                        self._on_crash(position.spec, str(reason), False)
                else:
                    self._place(position)


def _until_one_speaks(homes: Sequence[Home], seconds: float) -> None:
    """Wait for a message of any of ``homes``, or for its end."""
    waiting = select.poll()
    for home in homes:
        waiting.register(home.worker.channel.socket, select.POLLIN)
    waiting.poll(1e3 * seconds)
