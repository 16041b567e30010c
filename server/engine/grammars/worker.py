"""The processes in which clients' grammars are compiled and followed.

llguidance is native code: a schema may overflow its stack, fill the memory or keep it busy for minutes. So none of it
runs in the server. ``python -m ladle.server.engine.grammars.worker FD`` reads the vocabulary once and then forks a
worker whenever the server asks for one, which takes milliseconds and shares the vocabulary's memory. Nothing here
imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ladle.server.engine.grammars import wire
from ladle.server.engine.grammars.wire import Channel, GrammarMessage

_PR_SET_PDEATHSIG = 1
_STACK = 8 << 20  # bytes
_TRIALS, _TRIAL_TOKENS, _TRIAL_S = 3, 6, 0.02  # walks into a new grammar, and the processor time they may take
# Room for any schema that people write; a grammar beyond it would hold a step up, or fill the memory, for everybody.
_LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)
# What printers of JSON put between tokens: nothing, a space, or a line break with indentation. Any amount of white
# space would let a model that has nothing to say print it for ever.
JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": r"( |\n {0,20})?", "lenient": False, "coerce_one_of": False}


class Worker:
    """Follows grammars for the server at the other end of ``channel``; masks go into ``memory``.

    Args:
        words: the vocabulary.
        limits: ``compile_s`` and ``step_s``, seconds of processor time for a message of each kind; a worker that takes
            longer is ended by the system. ``stride``: bytes between two masks.
    """

    def __init__(self, channel: Channel, memory: mmap.mmap, words: LLTokenizer, limits: dict[str, Any]) -> None:
        self._channel = channel
        self._memory = memory
        self._words = words
        self._limits = limits
        self._grammars: dict[int, LLMatcher] = {}
        self._positions: dict[int, tuple[LLMatcher, int]] = {}

    def run(self) -> None:
        """Until the server closes the channel."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._channel.receive()
                assert message is not None
                if message.kind == wire.COMPILE:
                    self._compile(message)
                elif message.kind == wire.OPEN:
                    self._open(message)
                elif message.kind == wire.STEP:
                    self._step(message)
                elif message.kind == wire.CLOSE:
                    self._positions.pop(message.a, None)

    @contextlib.contextmanager
    def _at(self, kind: int, subject: int, seconds: float) -> Any:
        """Say what is worked at, so that the server knows what ended this process; and bound it."""
        wire.PLACE.pack_into(self._memory, 0, kind, subject)
        # Processor time, not time: a machine that is busy or was suspended is nobody's fault.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            wire.PLACE.pack_into(self._memory, 0, 0, 0)

    def _compile(self, message: GrammarMessage) -> None:
        try:
            with self._at(wire.COMPILE, message.a, self._limits["compile_s"]):
                matcher = self._matcher(message)
                reason = _reason(matcher) if matcher.is_error() else self._trial(matcher)
        except ValueError as error:
            reason = str(error) or "it cannot be compiled"
        self._channel.send(GrammarMessage(wire.COMPILED, message.a, payload=reason.encode(errors="replace")))

    def _matcher(self, message: GrammarMessage) -> LLMatcher:
        kind, _, text = message.payload.decode(errors="replace").partition("\n")
        if kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
        else:
            source = (LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark)(text)
        matcher = LLMatcher(self._words, str(source), log_level=0, limits=_LIMITS)
        self._grammars[message.a] = matcher
        return matcher

    def _trial(self, matcher: LLMatcher) -> str:
        """Walk a little way into a grammar, so that what its beginning shows to be too much is refused before anything
        is written: the reason, or nothing."""
        ways = random.Random(0)
        started = time.process_time()
        for _ in range(_TRIALS):
            walk = matcher.deep_copy()
            for _ in range(_TRIAL_TOKENS):
                mask = int.from_bytes(walk.compute_bitmask(), "little")
                if walk.is_error():
                    return _reason(walk)
                if not mask or time.process_time() - started > _TRIAL_S:
                    break
                # A random bit of the mask: the highest allowed token below a random place, else the highest of all.
                below = mask & ((1 << ways.randrange(1, mask.bit_length() + 1)) - 1) or mask
                if not walk.consume_token(below.bit_length() - 1):
                    return _reason(walk)
                if walk.is_stopped():
                    break
        return ""

    def _open(self, message: GrammarMessage) -> None:
        """Begin a position ``a`` of the grammar ``b``, with its masks in slot ``c``, behind the tokens given."""
        # A position is a copy of the compiled grammar's matcher, moved along the tokens that are there already.
        tokens = [token for (token,) in struct.iter_unpack("<I", message.payload)]
        with self._at(wire.OPEN, message.a, self._limits["compile_s"]):
            grammar = self._grammars.get(message.b)
            if grammar is None:
                self._channel.send(
                    GrammarMessage(wire.MASK, message.a, wire.FAILED, payload=b"it cannot be compiled again")
                )
                return
            matcher = grammar.deep_copy()
            if tokens:
                matcher.consume_tokens(tokens)
        self._positions[message.a] = (matcher, message.c)
        self._channel.send(self._state(message.a))
        self._mask(message.a)

    def _step(self, message: GrammarMessage) -> None:
        moved, refused = [], {}
        for position, token in wire.MASKED.iter_unpack(message.payload):
            if position in self._positions:
                with self._at(wire.STEP, position, self._limits["step_s"]):
                    taken = self._positions[position][0].consume_token(token)
                if taken:
                    moved.append(position)
                else:
                    reason = _reason(self._positions.pop(position)[0])
                    refused[position] = GrammarMessage(wire.STATE, position, wire.REFUSED, payload=reason.encode())
        # The server waits for these and not for the masks, which the next forward hides.
        self._channel.send(*map(self._state, moved), *refused.values())
        for position in moved:
            self._mask(position)

    def _mask(self, position: int) -> None:
        matcher, slot = self._positions[position]
        if not matcher.is_error() and not matcher.is_stopped():
            with self._at(wire.MASK, position, self._limits["step_s"]):
                mask = matcher.compute_bitmask()
            start = wire.HEAD + slot * self._limits["stride"]
            self._memory[start : start + len(mask)] = mask
        state = self._state(position)
        self._channel.send(GrammarMessage(wire.MASK, position, state.b, payload=state.payload))

    def _state(self, position: int) -> GrammarMessage:
        matcher, _ = self._positions[position]
        if matcher.is_error():
            return GrammarMessage(wire.STATE, position, wire.FAILED, payload=_reason(matcher).encode(errors="replace"))
        return GrammarMessage(wire.STATE, position, wire.STOPPED if matcher.is_stopped() else wire.GOING)


def _reason(matcher: LLMatcher) -> str:
    """Why a matcher is in error, without its inner state."""
    return str(matcher.get_error()).partition("\n<")[0].strip() or "it cannot be followed"


class Nursery:
    """Forks workers. It sees the vocabulary and no client's bytes, so that nothing a client sends can end it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._children: dict[int, int] = {}  # by process id, what the server calls them

    def run(self) -> None:
        """Until the server closes the channel, or is gone."""
        begin = self._channel.receive()
        assert begin is not None
        options = json.loads(begin.payload)
        try:
            words = LLTokenizer(options["tokenizer"], eos_token=options["eos"])
        except Exception as error:  # whatever the tokenizers library says of a file that it cannot read
            self._channel.send(GrammarMessage(wire.READY, 0, payload=str(error).encode(errors="replace")))
            return
        limits = options["limits"]
        # One bit per token in whole words of 32 bits, filled up to whole cache lines.
        limits["stride"] = -(-(words.vocab_size // 32 + 1) * 4 // 64) * 64
        self._channel.send(GrammarMessage(wire.READY, limits["stride"]))
        # Workers that end wake the loop through a pipe.
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(ended, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self._channel.socket.fileno(), ended], [], [])
            if ended in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(ended, 4096)
            self._reap()
            if self._channel.socket.fileno() in readable and not self._obey(words, limits, [ended, wake]):
                return

    def _obey(self, words: LLTokenizer, limits: dict[str, Any], ours: list[int]) -> bool:
        """Do what the server asks; false once it is gone. Every request is one byte of kind and four of the id."""
        # A FORK brings two descriptors: the worker's end of its channel, and its shared memory.
        data, fds, _, _ = socket.recv_fds(self._channel.socket, 5, 2)
        if len(data) < 5:
            return False
        kind, worker = struct.unpack("<BI", data)
        if kind == wire.KILL:
            for process, name in self._children.items():
                if name == worker:
                    os.kill(process, signal.SIGKILL)
            return True
        try:
            process = os.fork()
        except OSError as error:
            self._channel.send(GrammarMessage(wire.EXITED, worker, 1, payload=str(error).encode()))
            process = -1
        # The child never returns from here; the parent keeps no descriptor, so that a worker's end closes its channel.
        if process == 0:
            _become_worker(self._channel, fds, words, limits, ours)
        for fd in fds:
            os.close(fd)
        if process > 0:
            self._children[process] = worker
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = ended
                code = os.waitstatus_to_exitcode(status)
                worker = self._children.pop(process, 0)
                with contextlib.suppress(OSError):
                    self._channel.send(GrammarMessage(wire.EXITED, worker, 1 if code > 0 else 0, max(0, -code)))


def _become_worker(
    control: Channel, fds: list[int], words: LLTokenizer, limits: dict[str, Any], ours: list[int]
) -> None:
    """Serves as a worker in the forked process; never returns."""
    try:
        parent = os.getppid()
        # Nothing of the parent stays: neither its handlers nor its ends of pipes, whose closing others wait for.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        for fd in ours:
            os.close(fd)
        _die_with_parent(parent)
        _bound(limits["memory"])
        with socket.socket(fileno=fds[0]) as connection, mmap.mmap(fds[1], 0) as memory:
            os.close(fds[1])
            Worker(Channel(connection), memory, words, limits).run()
        os._exit(0)
    except BaseException as error:  # a panic of native code among them
        print(f"a grammar worker failed: {type(error).__name__}: {error}"[:500], file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _die_with_parent(parent: int) -> None:
    """A worker that is busy in native code would not see that its server is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _bound(memory: int) -> None:
    """Limit stack and memory of this process (``memory``: bytes more than it has), and let it write no core file."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_STACK, _STACK)
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            # The limit is on address space and the vocabulary is in it already, shared with the parent: what counts is
            # what comes on top.
            pages = int(statm.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, hard))


def main() -> None:
    """The process that forks workers; its argument is the descriptor of the channel to the server."""
    faulthandler.enable()
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group: the server decides when its answers end.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError), socket.socket(fileno=int(sys.argv[1])) as connection:
        Nursery(Channel(connection)).run()


if __name__ == "__main__":
    main()
