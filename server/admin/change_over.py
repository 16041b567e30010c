"""From the engines of a quick start to those that run compiled loops."""

from __future__ import annotations

import asyncio
import logging

from ladle.server.admin import administration
from ladle.server.api_errors import ApiError
from ladle.server.engine.device import early_code
from ladle.server.hosting import Hosted
from ladle.server.state import ServerState

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


async def change_over(state: ServerState) -> None:
    """Wait for the loops that are being compiled, then load anew, beside itself, each family that does without them.

    Requests that run are finished by the engine that they began with. A family that cannot be loaded a second time, for
    want of memory say, goes on without the loops until the next start.
    """
    await state.hosting.beside(early_code.await_all)
    given_up: set[Hosted] = set()
    while (hosted := _provisional(state, given_up)) is not None:
        logger.info("compiled loops are there; %s is loaded anew with them, beside itself", hosted.name)
        try:
            await administration.reload(state, hosted.name, "beside")
        except ApiError as error:
            if error.code == "busy":
                await asyncio.sleep(_RETRY_S)
                continue
            logger.warning("%s goes on without compiled loops: %s", hosted.name, error.message)
            given_up.add(hosted)
        except Exception:
            logger.exception("%s goes on without compiled loops", hosted.name)
            given_up.add(hosted)
        else:
            logger.info("%s runs compiled loops from here on", hosted.name)


def _provisional(state: ServerState, given_up: set[Hosted]) -> Hosted | None:
    waiting = (hosted for hosted in state.hosting.families.values() if hosted.provisional)
    return next((hosted for hosted in waiting if hosted not in given_up), None)
