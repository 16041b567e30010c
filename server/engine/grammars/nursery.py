"""The server's side of the process that forks grammar workers: start it, ask for workers, learn how they ended."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ladle.server.engine.grammars import wire
from ladle.server.engine.grammars.spec import GrammarError
from ladle.server.engine.grammars.wire import Channel, GrammarMessage

logger = logging.getLogger(__name__)

SLOTS = 64
"""Positions that a worker follows at once."""
_START_S = 60.0  # for reading a vocabulary; a large one takes a second
_STARTS, _WITHIN_S = 5, 60.0  # of the process: what cannot live is not started without end
_SEND_S = 3.0  # until a worker that takes no messages counts as lost
_LAST_WORDS_S = 2.0  # in which the system reports how a worker ended


class GrammarsUnavailable(RuntimeError):
    """Grammar workers cannot be started here; the message is the reason."""


@dataclass(frozen=True)
class End:
    """How a worker ended.

    Attributes:
        reason: for people.
        guilty: whether it ended because of what it was given, and not because somebody killed it.
    """

    reason: str
    guilty: bool


@dataclass(eq=False)
class WorkerProcess:
    """One worker, seen from the server.

    Attributes:
        name: its number at the nursery.
        channel: messages; one thread uses it at a time.
        memory: the head that says what it works at, and ``SLOTS`` masks of ``stride`` bytes.
        lock: held by whoever reads from the channel.
    """

    name: int
    channel: Channel
    memory: mmap.mmap
    stride: int
    lock: threading.RLock = field(default_factory=threading.RLock)

    def works_at(self) -> tuple[int, int]:
        """The kind of the message that it is at, and what that is about; zeros when it waits."""
        kind, subject = wire.PLACE.unpack_from(self.memory)
        return kind, subject

    def mask(self, slot: int) -> bytes:
        """A copy of the mask in ``slot``, one bit a token."""
        start = wire.HEAD + slot * self.stride
        return self.memory[start : start + self.stride]

    def close(self) -> None:
        """Let go of it, whereupon it ends."""
        self.channel.close()
        self.memory.close()


class _Handles:
    """What has to be closed at the end, apart from its owner so that a finalizer may hold it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.control: Channel | None = None
        self.workers: dict[int, WorkerProcess] = {}

    def close(self) -> None:
        for worker in list(self.workers.values()):
            worker.close()
        self.workers.clear()
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self.control = None


class GrammarNursery:
    """Forks workers for one tokenizer. Safe to call from several threads.

    Args:
        tokenizer: its JSON.
        eos: ids that end a text.
        limits: of every worker: ``compile_s``, ``step_s`` (seconds of processor time), ``memory`` (bytes).
    """

    def __init__(self, tokenizer: str, eos: Iterable[int], limits: dict[str, Any]) -> None:
        self._begin = json.dumps({"tokenizer": tokenizer, "eos": sorted(eos), "limits": limits}).encode()
        self._handles = _Handles()
        self._lock = threading.RLock()
        self._ends: dict[int, End] = {}
        self._stride = 0
        self._last = 0
        self._starts: deque[float] = deque(maxlen=_STARTS)
        self._broken: str | None = None
        self._closed = False
        weakref.finalize(self, self._handles.close)

    def start(self) -> None:
        """Make sure that the process is there.

        Raises:
            GrammarsUnavailable: it cannot be started.
            GrammarError: the library does not know this kind of tokenizer.
        """
        with self._lock:
            handles = self._handles
            if self._closed:
                raise GrammarsUnavailable("the family is on its way out")
            if self._broken is not None:
                raise GrammarError(self._broken)
            if handles.process is not None and handles.process.poll() is None:
                return
            if len(self._starts) == _STARTS and time.monotonic() - self._starts[0] < _WITHIN_S:
                raise GrammarsUnavailable(
                    f"the process for grammars has ended {_STARTS} times within {_WITHIN_S:.0f} s"
                )
            if handles.process is not None:
                logger.error("the grammar workers' process has ended (%s); another is started", handles.process.poll())
                if handles.control is not None:
                    handles.control.close()
                handles.process = handles.control = None
            self._launch()

    def fork(self) -> WorkerProcess:
        """A new worker, which may be given messages at once. Raises GrammarsUnavailable."""
        with self._lock:
            try:
                try:
                    self.start()
                    return self._forked()
                except (BrokenPipeError, ConnectionResetError):
                    # It has ended, or is about to, and the system does not say so yet.
                    assert self._handles.process is not None
                    self._handles.process.kill()
                    self._handles.process.wait()
                    self.start()
                    return self._forked()
            except OSError as error:
                raise GrammarsUnavailable(f"no grammar worker can be started: {error}") from None

    def _forked(self) -> WorkerProcess:
        while self._hear(0):  # what is not read would fill the channel in the end
            pass
        self._last += 1
        ours, theirs = socket.socketpair()
        try:
            memory = _shared(wire.HEAD + SLOTS * self._stride)
            try:
                assert self._handles.control is not None
                # Channel and memory go along as descriptors: the process that forks opens nothing by name.
                request = struct.pack("<BI", wire.FORK, self._last)
                socket.send_fds(self._handles.control.socket, [request], [theirs.fileno(), memory])
                ours.settimeout(_SEND_S)
                worker = WorkerProcess(self._last, Channel(ours), mmap.mmap(memory, 0), self._stride)
            finally:
                os.close(memory)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._handles.workers[worker.name] = worker
        return worker

    def release(self, worker: WorkerProcess) -> None:
        """End a worker that is not needed any more, or does not listen."""
        with self._lock:
            if self._handles.workers.pop(worker.name, None) is None:
                return
            self._ends.pop(worker.name, None)
            if self._handles.control is not None:
                with contextlib.suppress(OSError):
                    self._handles.control.socket.sendall(struct.pack("<BI", wire.KILL, worker.name))
            worker.close()

    def end_of(self, worker: WorkerProcess) -> End:
        """How a worker ended whose channel is closed."""
        with self._lock:
            until = time.monotonic() + _LAST_WORDS_S
            while worker.name not in self._ends:
                if not self._hear(max(0.0, until - time.monotonic())):
                    return End("the process that followed it was lost", guilty=False)
            return self._ends.pop(worker.name)

    def _hear(self, seconds: float) -> bool:
        """Take one message about a worker that has ended; whether one came in time."""
        try:
            message = None if self._handles.control is None else self._handles.control.receive(seconds)
        except EOFError:
            return False
        if message is None:
            return False
        if message.kind == wire.EXITED and message.a in self._handles.workers:  # of others nobody will ask
            self._ends[message.a] = _end(message)
        return True

    def close(self) -> None:
        """End it and all workers, for good."""
        with self._lock:
            self._closed = True
            self._handles.close()

    @property
    def pid(self) -> int | None:
        """The id of the process that forks; None where it has not been started."""
        process = self._handles.process
        return None if process is None else process.pid

    def _launch(self) -> None:
        self._starts.append(time.monotonic())
        ours, theirs = socket.socketpair()
        handles = self._handles
        # -P: the working directory is no place to import from.
        command = [sys.executable, "-P", "-m", "ladle.server.engine.grammars.worker", str(theirs.fileno())]
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            handles.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        except OSError as error:
            ours.close()
            raise GrammarsUnavailable(f"grammar workers cannot be started: {error}") from None
        finally:
            theirs.close()
        handles.control = Channel(ours)
        try:
            handles.control.send(GrammarMessage(wire.INIT, payload=self._begin))
            ready = handles.control.receive(_START_S)
        except (OSError, EOFError):
            ready = None
        if ready is None:
            handles.process.kill()
            raise GrammarsUnavailable("the process for grammars has ended before it was ready")
        if not ready.a:
            self._broken = f"the base's tokenizer is not supported: {ready.payload.decode(errors='replace')}"
            raise GrammarError(self._broken)
        self._stride = ready.a


def _shared(size: int) -> int:
    """A descriptor of zeroed memory that processes may share; it has no name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("ladle-grammar-masks")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


def _end(message: GrammarMessage) -> End:
    """What an EXITED message means."""
    if message.payload:
        return End(f"no process could be started for it: {message.payload.decode(errors='replace')}", guilty=False)
    if message.c == signal.SIGPROF:
        return End("it takes too long", guilty=True)
    if message.c in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE):
        name = signal.Signals(message.c).name
        return End(f"it ended its process ({name}: out of stack or memory, or a fault in the compiler)", guilty=True)
    if message.b:
        return End("its compiler failed on it", guilty=True)
    return End("the process that followed it was ended from outside", guilty=False)
