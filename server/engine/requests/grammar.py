"""Grammars that an answer must follow: JSON schemas, regular expressions and Lark grammars, compiled by llguidance.

Why that library: it compiles a schema that it has never seen in milliseconds, where those that precompute masks take
seconds, and it refuses keywords that it does not keep to instead of passing over them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

_CACHED = 128  # compiled grammars
# Room for any schema that people write; a grammar beyond it would hold a step up, or fill the memory, for everybody.
_LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)
_SLOW = 1.5  # seconds to the first token; ordinary grammars take milliseconds
# What printers of JSON put between tokens: nothing, a space, or a line break with indentation. Any amount of white
# space would let a model that has nothing to say print it for ever.
_JSON = {"whitespace_pattern": r"( |\n {0,20})?", "lenient": False, "coerce_one_of": False}


class GrammarError(ValueError):
    """A grammar that cannot be followed; the message is the reason."""


@dataclass(frozen=True)
class GrammarSpec:
    """A grammar as text, which is its identity: a JSON schema, a regular expression (Rust's syntax, matching the whole
    answer) or a grammar in llguidance's Lark."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> GrammarSpec:
        """Of a schema that is a JSON object. Its properties are written in the order in which they stand there."""
        return cls("json_schema", json.dumps(schema))


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar. It is never advanced itself: every sequence follows a copy."""

    spec: GrammarSpec
    _matcher: LLMatcher

    def start(self) -> LLMatcher:
        """A matcher at the beginning."""
        return self._matcher.deep_copy()


class GrammarCompiler:
    """Compiles grammars for one tokenizer; the last ones used are kept. Safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos: Iterable[int]) -> None:
        """``eos``: ids that end a text, allowed where a grammar may end and nowhere else."""
        self._tokenizer = tokenizer
        self._eos = sorted(eos)
        self._compiled: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._vocabulary_lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def __len__(self) -> int:
        return len(self._compiled)

    def forget(self) -> int:
        """Drop the compiled grammars; their number."""
        with self._lock:
            count = len(self._compiled)
            self._compiled.clear()
            return count

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar of ``spec``. Takes milliseconds, the first one a second more: not for an event loop.

        Raises:
            GrammarError: it is none, it uses what llguidance does not support, nothing can fulfil it, or it is too
                large; the message is llguidance's own.
        """
        with self._lock:
            found = self._compiled.get(spec)
            if found is not None:
                self._compiled.move_to_end(spec)
                return found
        grammar = Grammar(spec, self._matcher(spec))
        with self._lock:
            self._compiled[spec] = grammar
            while len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        return grammar

    def _matcher(self, spec: GrammarSpec) -> LLMatcher:
        try:
            text = _source(spec)
            matcher = LLMatcher(self._words(), text, log_level=0, limits=_LIMITS)
        except ValueError as error:
            raise GrammarError(str(error)) from None
        # What the beginning alone shows to be too much is refused here and not after an answer has begun.
        if not matcher.is_error():
            started = time.monotonic()
            matcher.compute_bitmask()
            seconds = time.monotonic() - started
            if seconds > _SLOW:
                raise GrammarError(f"finding the tokens that it may begin with takes {seconds:.1f} s")
        if matcher.is_error():
            raise GrammarError(reason_of(matcher))
        return matcher

    def _words(self) -> LLTokenizer:
        """The vocabulary as llguidance sees it, which takes a second to build.

        Raises:
            GrammarError: the tokenizer is of a kind it does not know, or has no id that ends a text.
        """
        with self._vocabulary_lock:
            if self._vocabulary is None:
                if not self._eos:
                    raise GrammarError("the base's tokenizer has no token that ends a text")
                try:
                    self._vocabulary = from_tokenizer(self._tokenizer, eos_token=self._eos)
                except Exception as error:  # whatever the tokenizers library says of a file that it cannot read
                    raise GrammarError(f"the base's tokenizer is not supported: {error}") from None
            return self._vocabulary


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher is in error, without its inner state."""
    return str(matcher.get_error()).partition("\n<")[0].strip()


def json_options() -> dict[str, Any]:
    """How JSON is written inside a Lark grammar: the ``x-guidance`` of a schema there."""
    return dict(_JSON)


def _source(spec: GrammarSpec) -> str:
    if spec.kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(spec.text, overrides=_JSON))  # type: ignore[arg-type]
    if spec.kind == "regex":
        return str(LLMatcher.grammar_from_regex(spec.text))
    return str(LLMatcher.grammar_from_lark(spec.text))
