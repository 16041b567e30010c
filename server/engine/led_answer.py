"""What all requests have in common that are led through several sequences, or whose outputs wait for others."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from ladle.server.engine.requests.answer import without_token
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sequence import Lane, Sequence

logger = logging.getLogger(__name__)

Sink = Callable[[list[StepOutput]], None]


class LedAnswer(ABC):
    """One request on its way, on the engine thread.

    Args:
        whole: the request, with the lanes that it writes with.
        deliver: takes the request's outputs.
        run: starts a sequence whose outputs go to a sink.
        stop: ends a sequence by its id, if it runs, without an output.
        lanes: fresh lanes for the sources of a request.
        ends: the tokens that end a text.
    """

    def __init__(
        self,
        whole: Sequence,
        deliver: Sink,
        run: Callable[[Sequence, Sink], None],
        stop: Callable[[str], None],
        lanes: Callable[[GenerationRequest], list[Lane]],
        ends: frozenset[int],
    ) -> None:
        self.request = whole.request
        self._whole = whole
        self._deliver = deliver
        self._run = run
        self._stop = stop
        self._lanes = lanes
        self._ends = ends
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Make what is known before it begins."""

    @abstractmethod
    def begin(self) -> None:
        """Start what comes first."""

    @abstractmethod
    def cancel(self) -> None:
        """Forget it all."""

    @abstractmethod
    def _follow(self, outputs: list[StepOutput]) -> None:
        """Take in outputs of the sequences that were started."""

    @property
    @abstractmethod
    def _told(self) -> list[int]:
        """The tokens that an answer which fails now ends with."""

    @property
    def _untold(self) -> str:
        """The text of these tokens that was held back so far."""
        return ""

    def _name(self, part: str) -> str:
        return f"{self.request.request_id}/{part}"

    def _take(self, outputs: list[StepOutput]) -> None:
        try:
            self._follow(outputs)
        except Exception as error:
            # Nobody but this object would know that the request has failed.
            logger.exception("an answer could not be led on: %s", type(self).__name__)
            self._fail("error", f"{type(error).__name__} in the engine")

    def _failed(self, output: StepOutput) -> bool:
        """Whether ``output`` ends a sequence that failed or was stopped, with which the answer ends as well."""
        if output.finish_reason not in ("error", "abort"):
            return False
        self._fail(output.finish_reason, output.error)
        return True

    def _fail(self, reason: str, error: str | None) -> None:
        # Everything that was started is stopped first, so that nothing comes after the last output.
        self.cancel()
        self._deliver([without_token(Sequence(self.request, [], output=self._told), reason, error, self._untold)])
