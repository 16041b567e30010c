"""Grammars that an answer must follow: JSON schemas, regular expressions and Lark grammars, compiled by llguidance.

Why that library: it compiles a schema that it has never seen in milliseconds, where those that precompute masks take
seconds, and it refuses keywords that it does not keep to instead of passing over them. It runs in processes of its own
(``worker.py``), because what a client sends may end the process that compiles it.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from ladle.server.engine.grammars.nursery import GrammarNursery, GrammarsUnavailable
from ladle.server.engine.grammars.pool import GrammarPool, Position
from ladle.server.engine.grammars.spec import GrammarError, GrammarSpec, too_complex

__all__ = ["Grammar", "GrammarCompiler", "GrammarError", "GrammarSpec", "GrammarsUnavailable", "json_options"]

logger = logging.getLogger(__name__)

_CACHED = 128  # grammars that are known to compile
_CRASHED = 1024  # grammars that are known to end their process
_STRIKES = 3  # crashes while an answer was written, after which a grammar is refused from the start
LIMITS: dict[str, Any] = {"compile_s": 2.0, "step_s": 1.5, "memory": 768 << 20}
"""What a worker may take: seconds of processor time for compiling and for one token, bytes beside the vocabulary."""
# How llguidance is to write JSON inside a Lark grammar; the same as of a schema by itself.
_JSON = {"whitespace_pattern": r"( |\n {0,20})?", "lenient": False, "coerce_one_of": False}


@dataclass(frozen=True)
class Grammar:
    """A grammar that compiles, for one tokenizer.

    Attributes:
        spec: its text.
        pool: the workers that follow it.
        field: of the request that asks for it, for errors.
    """

    spec: GrammarSpec
    pool: GrammarPool
    field: str = "response_format"

    def start(self, tokens: Iterable[int] = ()) -> Position:
        """A position behind ``tokens``. Whoever starts one finishes it."""
        return self.pool.start(self.spec, tokens)


class GrammarCompiler:
    """Compiles grammars for one tokenizer; the last ones used are known. Safe to call from several threads.

    Processes are started when the first grammar comes, or by ``warm``, and end with this object or with ``close``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos: Iterable[int]) -> None:
        """``eos``: ids that end a text, allowed where a grammar may end and nowhere else."""
        self._tokenizer = tokenizer
        self._eos = sorted(eos)
        self._compiled: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._crashed: OrderedDict[GrammarSpec, tuple[int, str]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._nursery: GrammarNursery | None = None
        self._pool: GrammarPool | None = None

    def __len__(self) -> int:
        return len(self._compiled)

    def warm(self) -> None:
        """Start the process that knows the vocabulary. Raises GrammarError, GrammarsUnavailable."""
        self._ready()

    def close(self) -> None:
        """End the processes; positions in them fail."""
        if self._nursery is not None:
            self._nursery.close()

    def forget(self) -> int:
        """Drop the compiled grammars, and what is known of those that crashed; the number of the former."""
        with self._lock:
            count = len(self._compiled)
            self._compiled.clear()
            self._crashed.clear()
        if self._pool is not None:
            self._pool.drop_idle()
        return count

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of ``spec``. Takes milliseconds, the first one a second more: not for an event loop.

        Raises:
            GrammarError: it is none, it uses what llguidance does not support, nothing can fulfil it, or it is too
                large; the message is llguidance's own.
            GrammarsUnavailable: the system starts no process for it.
        """
        with self._lock:
            # Known to compile, in some worker: which one follows it is decided for each position.
            cached = self._compiled.get(spec)
            if cached is not None:
                self._compiled.move_to_end(spec)
                return cached
            # One that has ended several workers while it was followed is refused from the start, whoever sends it.
            strikes, reason = self._crashed.get(spec, (0, ""))
            if strikes >= _STRIKES:
                raise GrammarError(too_complex(reason), complex=True)
        pool = self._ready()
        # Outside of the lock: a compilation takes milliseconds to seconds, and known grammars are handed out meanwhile.
        pool.compile(spec)
        grammar = Grammar(spec, pool)
        with self._lock:
            self._compiled[spec] = grammar
            while len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        return grammar

    def _ready(self) -> GrammarPool:
        with self._pool_lock:
            # The process is started once, under a lock of its own; if it has ended since, ``start`` starts another.
            if self._nursery is None:
                if not self._eos:
                    raise GrammarError("the base's tokenizer has no token that ends a text")
                self._nursery = GrammarNursery(_json_of(self._tokenizer), self._eos, LIMITS)
            self._nursery.start()
            if self._pool is None:
                self._pool = GrammarPool(self._nursery, self._crash)
            return self._pool

    def _crash(self, spec: GrammarSpec, reason: str, compiling: bool) -> None:
        """A grammar has ended its process: at once when it was compiled, so that it will again, or on the way."""
        with self._lock:
            strikes = _STRIKES if compiling else self._crashed.get(spec, (0, ""))[0] + 1
            self._crashed[spec] = (strikes, reason)
            self._crashed.move_to_end(spec)
            if strikes >= _STRIKES:
                self._compiled.pop(spec, None)
            while len(self._crashed) > _CRASHED:
                self._crashed.popitem(last=False)
        logger.warning("a grammar (%s, %d characters) was ended: %s", spec.kind, len(spec.text), reason)


def json_options() -> dict[str, Any]:
    """How JSON is written inside a Lark grammar: the ``x-guidance`` of a schema there."""
    return dict(_JSON)


def _json_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as its library writes it, with what its config adds; it neither pads nor cuts.

    Raises:
        GrammarError: the library cannot write it.
    """
    try:
        backend = copy.copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        return str(backend.to_str())
    except Exception as error:  # whatever the tokenizers library says of a tokenizer that is none
        raise GrammarError(f"the base's tokenizer is not supported: {error}") from None
