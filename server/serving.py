"""A loaded family with the engine that runs it, as handlers see both."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from types import MappingProxyType
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from ladle.merging.family.family import Family
from ladle.server.engine.engine import EngineStats
from ladle.server.engine.grammars.grammar import GrammarCompiler
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.text.control_tokens import ControlTokens
from ladle.server.text.text_bound import TextBound
from ladle.server.text.thinking_tags import ThinkingTags
from ladle.server.text.token_text import TokenText


class TextEngine(Protocol):
    """What the handlers need of an engine; ``AsyncEngine`` is one."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    @property
    def max_context(self) -> int: ...

    @property
    def eos(self) -> frozenset[int]: ...

    @property
    def alive(self) -> bool: ...

    def stats(self) -> EngineStats: ...

    def require_room(self) -> None:
        """Raises QueueFull while no request at all can be queued."""

    def stream(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """The outputs of a request; closing the iterator cancels it. Raises InputError, QueueFull, RuntimeError."""

    def steer(self, requests: Sequence[GenerationRequest]) -> Awaitable[list[int | None]]:
        """Let running sequences go on under the plans of ``requests``. Gives how many tokens each has from before, None
        for one that has ended. Raises InputError, RuntimeError."""


@dataclass(frozen=True)
class Serving:
    """A loaded family and the engine that runs it.

    Attributes:
        vocabulary: number of token ids a request may use.
        created: Unix time at which it was loaded.
        form: which forms of a step are in force, by name.
        fingerprint: changes with the base's weights, with the form and with our version.
        bound: how many tokens a text has at least.
        control_tokens: what names of special tokens in the texts of a chat are kept from becoming.
        thinking: how thoughts in front of answers are told apart; None where nothing says so.
        grammars: of the base's tokenizer; ``compiling`` is where one is compiled before anybody asks.
    """

    family: Family
    engine: TextEngine
    vocabulary: int
    created: int
    fingerprint: str
    tokens: TokenText
    bound: TextBound
    control_tokens: ControlTokens
    grammars: GrammarCompiler
    compiling: ThreadPoolExecutor
    thinking: ThinkingTags | None = None
    form: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, family: Family, engine: TextEngine, vocabulary: int, form: Mapping[str, str] = MappingProxyType({})
    ) -> Serving:
        """Wrap a running engine; ``vocabulary`` is the number of rows of its embedding."""
        backend = engine.tokenizer.backend_tokenizer
        # A tokenizer file may ask for truncation; prompts are refused when too long, never cut.
        backend.no_truncation()
        backend.no_padding()
        said = [f"{name}={value}" for name, value in sorted(form.items())]
        # Rows beyond the tokenizer's tokens are padding; tokens beyond the rows have no embedding.
        vocabulary = min(vocabulary, len(engine.tokenizer))
        identity = " ".join([family.base_revision, version("ladle"), *said])
        return cls(
            family=family,
            engine=engine,
            vocabulary=vocabulary,
            created=int(time.time()),
            fingerprint=f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
            tokens=TokenText(engine.tokenizer),
            bound=TextBound(engine.tokenizer),
            control_tokens=ControlTokens(engine.tokenizer),
            grammars=GrammarCompiler(engine.tokenizer, engine.eos),
            compiling=ThreadPoolExecutor(1, "ladle-compile"),
            thinking=ThinkingTags.of(family.manifest.thinking, engine.tokenizer, vocabulary),
            form=dict(form),
        )
