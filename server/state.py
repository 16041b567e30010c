"""What the handlers share: settings, phase, and the served family once it is loaded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from ladle.merging.family import Family
from ladle.server.api_keys import ApiKeys
from ladle.server.callers import Caller
from ladle.server.control_tokens import ControlTokens
from ladle.server.engine.engine import EngineStats
from ladle.server.engine.failure_streak import FailureStreak
from ladle.server.engine.grammar import GrammarCompiler
from ladle.server.engine.request import GenerationRequest, StepOutput
from ladle.server.errors import ApiError, unavailable
from ladle.server.hosting import Hosted, Hosting, family_named
from ladle.server.settings import ServerSettings
from ladle.server.telemetry import Metrics
from ladle.server.token_text import TokenText
from ladle.server.tracing import Tracing


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


@dataclass(frozen=True)
class Serving:
    """A loaded family and the engine that runs it.

    Attributes:
        vocabulary: number of token ids a request may use.
        created: Unix time at which it was loaded.
        fingerprint: changes with the base's weights and with our version.
        controls: what names of special tokens in the texts of a chat are kept from becoming.
        grammars: of the base's tokenizer; ``compiling`` is where they are compiled, so that neither the event loop nor
            the threads that read prompts wait for them.
    """

    family: Family
    engine: TextEngine
    vocabulary: int
    created: int
    fingerprint: str
    tokens: TokenText
    controls: ControlTokens
    grammars: GrammarCompiler
    compiling: ThreadPoolExecutor

    @classmethod
    def of(cls, family: Family, engine: TextEngine, vocabulary: int) -> Serving:
        """Wrap a running engine; ``vocabulary`` is the number of rows of its embedding."""
        backend = engine.tokenizer.backend_tokenizer
        # A tokenizer file may ask for truncation; prompts are refused when too long, never cut.
        backend.no_truncation()
        backend.no_padding()
        identity = f"{family.base_revision} {version('ladle')}"
        return cls(
            family=family,
            engine=engine,
            # Rows beyond the tokenizer's tokens are padding; tokens beyond the rows have no embedding.
            vocabulary=min(vocabulary, len(engine.tokenizer)),
            created=int(time.time()),
            fingerprint=f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
            tokens=TokenText(engine.tokenizer),
            controls=ControlTokens(engine.tokenizer),
            grammars=GrammarCompiler(engine.tokenizer, engine.eos),
            # They wait for processes, which share the cores: what takes long there is not to hold others' grammars up.
            compiling=ThreadPoolExecutor(8, "ladle-compile"),
        )


class Phase(StrEnum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    PAUSED = "paused"
    DRAINING = "draining"
    FAILED = "failed"


class FamilyLoader(Protocol):
    """What loads families while the server runs; ``loading.FamilyFiles`` does. Called on threads of its own."""

    def available(self) -> list[str]:
        """Names that may be loaded."""

    def source_of(self, name: str) -> str | None:
        """What ``load`` takes, for a name of ``available``; None for any other."""

    def members(self, source: str, left_out: frozenset[str]) -> list[str]:
        """Names of the members that ``load`` would load. Raises FamilyError."""

    def load(self, source: str, left_out: frozenset[str]) -> Hosted:
        """Load a family without some of its members. Raises FamilyError, InputError."""


@dataclass
class ServerState:
    """Mutable state of one server process; changed by ``run.py`` and ``administration.py`` only.

    Attributes:
        keys: None lets everybody in.
        hosting: the families that are loaded.
        loader: what loads further ones; None where that cannot be done.
        failure: why loading failed.
        active: generating HTTP requests that are not finished.
        doing: what is being loaded, for who asks why the server is not ready.
        loads: how the loads that an administrator asked for went.
        drain_until: when running requests will be ended, in seconds of ``time.monotonic``.
    """

    settings: ServerSettings
    keys: ApiKeys | None = None
    phase: Phase = Phase.LOADING
    hosting: Hosting = field(default_factory=Hosting)
    loader: FamilyLoader | None = None
    failure: Exception | None = None
    active: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    doing: str = ""
    drain_until: float | None = None
    loads: FailureStreak = field(default_factory=lambda: FailureStreak("loading a family"))

    def __post_init__(self) -> None:
        self.metrics.ready.set_function(lambda: self.unready() is None and self.failing() is None)

    @property
    def serving(self) -> Serving | None:
        """The family that requests mean which name none; None while there is none."""
        default = self.hosting.default
        return None if default is None else default.serving

    def publish(self, served: Serving | Hosted) -> None:
        """Begin to take work, unless a shutdown came first."""
        self.host(served if isinstance(served, Hosted) else Hosted(served))
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def host(self, hosted: Hosted, first: bool = False) -> None:
        """Serve one more family, or one anew."""
        self.hosting.add(hosted, first)
        if self.serving is not None:
            facts = {"family": self.serving.family.name, "fingerprint": self.serving.fingerprint}
            self.metrics.server.info({"version": version("ladle"), **facts})

    def unready(self) -> str | None:
        """Why no work can be taken now; None when it can."""
        if self.phase is not Phase.READY:
            return str(self.phase)
        if self.hosting.broken:
            return "the engine has stopped"
        return None if self.hosting.families else "no family is loaded"

    def failing(self) -> str | None:
        """What fails again and again, with the reason, while everything else is in order; None where nothing does.

        Requests are taken nevertheless: many need nothing of it, and the others show when it works again.
        """
        return self.loads.reason or self.hosting.failing

    def why_unready(self) -> str | None:
        """``unready`` with what is known about it."""
        reason = self.unready()
        if reason is not None and self.phase is Phase.LOADING and self.doing:
            return f"{reason}: {self.doing}"
        if reason is not None and self.phase is Phase.FAILED:
            return f"loading failed ({type(self.failure).__name__}); the log says why"
        if reason is not None and self.phase is Phase.PAUSED:
            return f"{reason} by an administrator: {self.active} requests are running"
        if reason is not None and self.phase is Phase.DRAINING and self.drain_until is not None:
            left = max(0.0, self.drain_until - time.monotonic())
            return f"{reason}: {self.active} requests are running, for at most {left:.0f} s more"
        return reason

    def unready_code(self) -> str:
        """``unready`` as an error code."""
        if self.phase is not Phase.READY:
            return str(self.phase)
        return "engine_stopped" if self.hosting.broken else "no_family"

    def require(self) -> Serving:
        """The family that requests mean which name none.

        Raises:
            ApiError: 503 while loading or draining, and once the engine has stopped.
        """
        return self.choose(None).live

    def choose(self, model: str | None) -> Hosted:
        """The family that ``model`` means; the first one where it means none of them, which says what there is.

        Raises:
            ApiError: 503 while loading, draining or paused, while that family is loaded anew, and once an engine has
                stopped.
        """
        reason = self.unready()
        if reason is None:
            hosted = self.hosting.find(model)
            waits = None if hosted or model is None else self.hosting.reserved.get(family_named(model))
            if waits is None:
                assert self.hosting.default is not None, "it is ready"
                return hosted or self.hosting.default
            raise self.counted(unavailable(f"{family_named(model or '')}: {waits}", "reloading"))
        if self.hosting.reserved and self.unready_code() == "no_family":
            raise self.counted(unavailable("; ".join(self.hosting.reserved.values()), "reloading"))
        raise self.counted(unavailable(f"the server cannot take work: {reason}", self.unready_code()))

    def counted(self, error: ApiError) -> ApiError:
        """``error``, by which a request is refused before it ran, counted."""
        self.metrics.rejections.labels(reason=error.code).inc()
        return error

    def let(self, caller: Caller) -> None:
        """Raise ApiError (429) for a caller who has to wait before anything is computed for him."""
        try:
            caller.check()
        except ApiError as error:
            raise self.counted(error) from None
