"""What the handlers share: settings, phase, and the served family once it is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from typing import Protocol

from ladle.server.access.api_keys import ApiKeys
from ladle.server.access.callers import Caller
from ladle.server.access.turns import FairPool
from ladle.server.api_errors import ApiError, unavailable
from ladle.server.engine.stats.failure_streak import FailureStreak
from ladle.server.hosting import Hosted, Hosting, family_named
from ladle.server.live_answers import LiveAnswer
from ladle.server.replies.kept_responses import ResponseStore
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.watch.telemetry import Metrics
from ladle.server.watch.tracing import Tracing

_COMPILING = 8  # grammars at once


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
        live: their answers, by the part of their ids that is their own.
        doing: what is being loaded, for who asks why the server is not ready.
        responses: answers that are kept for their callers.
        loads: how the loads that an administrator asked for went.
        reading: where texts become tokens, the callers taking turns.
        compiling: where grammars are compiled, likewise: they wait for processes, which share the cores.
        drain_until: when running requests will be ended, in seconds of ``time.monotonic``.
    """

    settings: ServerSettings
    keys: ApiKeys | None = None
    phase: Phase = Phase.LOADING
    hosting: Hosting = field(default_factory=Hosting)
    loader: FamilyLoader | None = None
    failure: Exception | None = None
    active: int = 0
    live: dict[str, LiveAnswer] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)
    doing: str = ""
    reading: FairPool = field(default_factory=FairPool)
    compiling: FairPool = field(default_factory=lambda: FairPool(_COMPILING))
    drain_until: float | None = None
    responses: ResponseStore = field(init=False)
    loads: FailureStreak = field(default_factory=lambda: FailureStreak("loading a family"))

    def __post_init__(self) -> None:
        self.responses = ResponseStore(self.settings.kept_responses, self.settings.kept_responses_bytes)
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
            self.metrics.server.info({"version": version("ladle"), **facts, **self.serving.form})

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
