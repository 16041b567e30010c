"""Another plan for answers that are being written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future

from ladle.merging.exceptions import InputError
from ladle.server.engine.engine import Engine
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sequence import Change

logger = logging.getLogger(__name__)


def steer(engine: Engine, requests: Sequence[GenerationRequest]) -> Future[list[int | None]]:
    """Let the sequences that run by the ids of ``requests`` go on under their plans, from the next tokens that are
    drawn: all of them or, where one is refused, none.

    The state of the text so far is computed anew under the new weights, as after a preemption: one prefill, in chunks
    beside the steps of others. The rest of a schedule is dropped. From any thread.

    Args:
        requests: as they were submitted, with another plan and the views of the prompt that this one has.

    Returns:
        After the step that runs now: how many tokens each of them has from plans before; None where it has ended.

    Raises:
        InputError: a plan can never run here, or values whole blocks.
        RuntimeError: the engine is shutting down.
    """
    for request in requests:
        if request.plan.blocks is not None:
            reason = "whole blocks are chosen from the beginning of an answer or not at all"
            raise InputError(f"steering.{request.plan.blocks.option}", request.plan.blocks.length, reason=reason)
    # All are checked before any is made, on the caller's thread: either every sequence changes or none.
    changes = [Change(0, request, engine.check(request)) for request in requests]
    future: Future[list[int | None]] = Future()

    def work() -> None:
        # Who asked may have left; what was accepted is done all the same.
        heard = future.set_running_or_notify_cancel()
        try:
            counts = [engine.tracker.change(change) for change in changes]
        except Exception as error:
            if not heard:
                logger.exception("a change of steering failed")
            else:
                future.set_exception(error)
            return
        if heard:
            future.set_result(counts)

    engine.between_steps(work)
    return future
