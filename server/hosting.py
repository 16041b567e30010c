"""The families that are served, and those on their way out: who uses each of them, and when it may go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from ladle.server.engine.device import allocator
from ladle.server.engine.engine_admin import CacheStats
from ladle.server.engine.stats.stats import NONE, EngineStats, past, total

if TYPE_CHECKING:
    from ladle.server.serving import Serving

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0  # for the step that an engine is in when a process ends
_LEASES = "ladle.leases"
T = TypeVar("T")


class EngineAdministration(Protocol):
    """What an operator may do to an engine; ``EngineAdmin`` is one."""

    @property
    def alive(self) -> bool: ...

    @property
    def memory(self) -> tuple[int, int]: ...

    def caches(self) -> CacheStats: ...

    def forget_prefixes(self) -> Future[int]: ...

    def drop_merged(self) -> Future[int]: ...

    def close(self, patience_s: float | None = None) -> None: ...


@dataclass(eq=False)
class Hosted:
    """One load of a family. A family that is loaded again is another one, with an engine and memory of its own.

    Attributes:
        engine_admin: of its engine; None for one that nobody here started.
        source: what ``FamilyLoader`` loads it from.
        left_out: members that were left out.
        provisional: its engine does without loops that are being compiled; it is loaded anew once they are there.
        users: HTTP requests that hold it.
        retired: it gets no further ones.
        gone: its engine has ended and its memory is given back.
    """

    serving: Serving | None
    engine_admin: EngineAdministration | None = None
    source: str = ""
    left_out: frozenset[str] = frozenset()
    provisional: bool = False
    users: int = 0
    retired: bool = False
    loaded_at: float = field(default_factory=time.time)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = ""

    def __post_init__(self) -> None:
        if self.serving is not None:
            self.name = self.serving.family.name

    @property
    def live(self) -> Serving:
        """Its family and engine, which are there as long as anybody holds it."""
        assert self.serving is not None, "it is held, or it is not retired"
        return self.serving


class Hosting:
    """The families that are served. For the event loop's thread, but for ``add`` (which a loading thread calls once)
    and ``stats``.

    Attributes:
        families: by name; the first one answers requests that name none.
        retiring: those that requests still hold, or whose engines are ending.
        reserved: why a family that is known is not there just now, by name.
        changing: what is being loaded or unloaded; one change at a time.
        working: the thread that loads or ends something.
    """

    def __init__(self) -> None:
        self.families: dict[str, Hosted] = {}
        self.retiring: list[Hosted] = []
        self.reserved: dict[str, str] = {}
        self.changing: str | None = None
        self.working: set[threading.Thread] = set()
        self._past = NONE
        self._told: set[Hosted] = set()  # to end, whether or not they have

    @property
    def default(self) -> Hosted | None:
        return next(iter(self.families.values()), None)

    @property
    def broken(self) -> bool:
        """Whether an engine that should run has ended."""
        return any(not hosted.live.engine.alive for hosted in self.families.values())

    @property
    def failing(self) -> str | None:
        """Why nobody should rely on a family's merges now; None where they work."""
        for hosted in self.families.values():
            reason = hosted.live.engine.stats().merges.failing
            if reason is not None:
                return f"{hosted.name}: {reason}"
        return None

    def find(self, model: str | None) -> Hosted | None:
        """The family that a request's ``model`` means: a preset's name or a string that begins with a family's."""
        if model is None:
            return self.default
        for hosted in self.families.values():
            if model in hosted.live.family.manifest.presets:
                return hosted
        return self.families.get(family_named(model))

    def conflict(self, new: Serving, replaced: Hosted | None = None) -> str | None:
        """Why ``new`` cannot be served beside the others: names of families and presets must mean one thing."""
        manifest = new.family.manifest
        for hosted in self.families.values():
            if hosted is replaced:
                continue
            other = hosted.live.family.manifest
            if other.name == manifest.name:
                return f"a family {manifest.name!r} is served already"
            shared = {manifest.name, *manifest.presets} & {other.name, *other.presets}
            if shared:
                return f"{sorted(shared)[0]!r} is the name of a family or preset in {other.name!r} too"
        return None

    def add(self, hosted: Hosted, first: bool = False) -> None:
        """Serve it from now on; in the place of the one of its name, which is retired."""
        before = self.families.get(hosted.name)
        if first:
            self.families = {hosted.name: hosted} | self.families
        self.families[hosted.name] = hosted
        if before is not None and before is not hosted:
            self._retire(before)

    async def discard(self, hosted: Hosted) -> None:
        """End one that is not served after all."""
        self._retire(hosted)
        await hosted.gone.wait()

    def remove(self, name: str) -> Hosted:
        """Give no further requests to the family ``name``; those that hold it finish."""
        hosted = self.families.pop(name)
        self._retire(hosted)
        return hosted

    def hold(self, scope: Scope, hosted: Hosted) -> Serving:
        """Keep it until the answer to the request of ``scope`` has ended; see ``Leases``."""
        scope[_LEASES].append(hosted)
        hosted.users += 1
        return hosted.live

    @contextmanager
    def held(self, hosted: Hosted) -> Iterator[Serving]:
        """Keep a hosted family for as long as a block runs."""
        hosted.users += 1
        try:
            yield hosted.live
        finally:
            self.release(hosted)

    def release(self, hosted: Hosted) -> None:
        hosted.users -= 1
        if hosted.retired and not hosted.users:
            self._end(hosted)

    def stats(self) -> EngineStats:
        """The sum over all engines, those that are gone included."""
        return total([self._past, *(hosted.live.engine.stats() for hosted in self._all() if hosted.serving)])

    def close(self) -> None:
        """End every engine, whatever runs; from any thread."""
        for hosted in list(self._all()):
            if hosted.engine_admin is not None and hosted.engine_admin.alive and hosted not in self._told:
                self._told.add(hosted)
                hosted.engine_admin.close(_PATIENCE_S)
                hosted.live.grammars.close()
                if hosted.engine_admin.alive:
                    logger.error("the engine of %s is in a step that does not end; it is left behind", hosted.name)

    @property
    def computing(self) -> bool:
        """Whether a thread still loads, or an engine runs."""
        return bool(self.working) or any(hosted.engine_admin and hosted.engine_admin.alive for hosted in self._all())

    def _all(self) -> Iterable[Hosted]:
        return [*self.families.values(), *self.retiring]

    def _retire(self, hosted: Hosted) -> None:
        hosted.retired = True
        self.retiring.append(hosted)
        if not hosted.users:
            self._end(hosted)

    def _end(self, hosted: Hosted) -> None:
        """End the engine beside the event loop, and then let go of all that it held."""

        def end() -> None:
            if hosted.engine_admin is not None:
                hosted.engine_admin.close()
            hosted.live.compiling.shutdown(wait=False)
            hosted.live.grammars.close()
            loop.call_soon_threadsafe(forget)

        def forget() -> None:
            self._past = total([self._past, past(hosted.live.engine.stats())])
            self.retiring.remove(hosted)
            hosted.serving = hosted.engine_admin = None
            allocator.give_back()
            logger.info("the memory of %s is given back", hosted.name)
            hosted.gone.set()

        loop = asyncio.get_running_loop()
        self._work(end)

    def _work(self, work: Callable[[], None]) -> None:
        def body() -> None:
            try:
                work()
            finally:
                self.working.discard(thread)

        # Not the loop's own threads, whose end the process would wait for: a load may take minutes.
        thread = threading.Thread(target=body, name="ladle-families", daemon=True)
        self.working.add(thread)
        thread.start()

    async def beside(self, work: Callable[[], T]) -> T:
        """Do what takes long on a thread of its own. Raises what it raises."""
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def body() -> None:
            try:
                result, error = work(), None
            except BaseException as failure:
                result, error = None, failure
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(deliver, result, error)

        def deliver(result: T | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._work(body)
        return await future


def family_named(model: str) -> str:
    """The family in a model string ``FAMILY[/METHOD][@objective=weight,...]``."""
    return model.partition("@")[0].partition("/")[0]


class Leases:
    """Releases what a request held when its answer has ended; a stream ends long after its handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        leases: list[Hosted] = []
        scope[_LEASES] = leases
        try:
            await self._app(scope, receive, send)
        finally:
            hosting = scope["app"].state.server.hosting
            for hosted in leases:
                hosting.release(hosted)
