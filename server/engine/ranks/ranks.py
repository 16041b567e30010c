"""Tensor parallelism as the engine sees it: processes beside this one that compute every forward with their parts.

The engine decides, schedules and draws alone. What its forwards read is told to the others before each of them: a line
of JSON to each, and the tensors by broadcast. They answer nothing; results are exchanged within the forwards.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward.layout import StepLayout
from ladle.server.engine.ranks.layout_wire import pack
from ladle.server.engine.ranks.process_group import ProcessGroup

logger = logging.getLogger(__name__)

_PATIENCE_S = 5.0


class RankLost(Exception):
    """A process that has a part of the model is gone, or out of step: nothing can be computed any more."""


class Ranks:
    """This process, number 0, and the ``size`` - 1 others it starts. For the engine's thread, but for ``close``."""

    def __init__(self, family: Family, config: EngineConfig, device: torch.device, on_lost: Callable[[], None]) -> None:
        """Start the others and wait until they can be talked to; they load the family meanwhile.

        Args:
            on_lost: called on another thread once one of them has ended by itself.

        Raises:
            InputError: ``config.tensor_parallel`` is more than the machine allows.
            RankLost: one of them ends at once.
        """
        size = config.tensor_parallel
        _require(config, device)
        self.lost: str | None = None
        self._closing = False
        self._on_lost = on_lost
        self._folder = tempfile.TemporaryDirectory(prefix="ladle-ranks-")
        meeting = Path(self._folder.name) / "meeting"
        threads = max(1, torch.get_num_threads() // size)
        if device.type == "cpu":
            torch.set_num_threads(threads)
        asked = {
            "family": str(family.root), "left_out": sorted(family.left_out),
            "cache_dir": None if family.cache_dir is None else str(family.cache_dir),
            "config": dataclasses.asdict(config), "size": size, "meeting": str(meeting), "device": device.type,
        }  # fmt: skip
        # The processes compute at once and share the cores of this machine, so each gets its share of the threads.
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "ladle.server.engine.rank_process"]
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # a Ctrl-C is the server's to deal with
            )
            for _ in range(1, size)
        ]
        for rank, process in enumerate(self._processes, start=1):
            threading.Thread(target=self._watch, args=(rank, process), name=f"ladle-rank-{rank}", daemon=True).start()
        try:
            for rank, process in enumerate(self._processes, start=1):
                # One that has ended already takes nothing in; that it gives no answer names it.
                with suppress(BrokenPipeError):
                    self._write(process, asked | {"rank": rank})
            self._answers()  # they are there: waiting for the group has an end
            self.group = ProcessGroup(meeting, 0, size, device)
        except BaseException:
            self.close()
            raise

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Wait until all have loaded their parts, and see that they loaded the same as this process did.

        Raises:
            RankLost: one has not.
        """
        for rank, answer in enumerate(self._answers(), start=1):
            if answer != facts:
                raise RankLost(f"process {rank} of the model loaded something else: the family changed meanwhile")

    def _answers(self) -> list[Any]:
        """The next line of each of the others."""
        lines = [process.stdout.readline() for process in self._processes if process.stdout is not None]
        for rank, line in enumerate(lines, start=1):
            if not line:
                raise RankLost(f"process {rank} of the model ended while it loaded; its log says why")
        return [json.loads(line) for line in lines]

    def computing(self, what: str, model: str, key: WeightsKey, layout: StepLayout) -> AbstractContextManager[None]:
        """``together`` for a forward of ``model``, with the weights ``key``, over ``layout``; ``what``: "forward" or
        "hidden"."""
        facts, tensors = pack(layout)
        return self.together({"do": what, "model": model, "weights": _said(key), "layout": facts}, *tensors)

    def merge(self, key: WeightsKey, wanted: bool) -> None:
        """Let the others merge their parts of the weights ``key`` beside their steps, or drop them. Raises RankLost."""
        self._tell({"do": "merge" if wanted else "drop", "weights": _said(key)})

    @contextmanager
    def together(self, facts: Mapping[str, Any], *tensors: Tensor) -> Iterator[None]:
        """Let the others do what this process does within: ``facts`` tell it, and ``tensors`` are broadcast. If it
        fails here, nobody knows where the others are, and nothing is computed any more. Raises RankLost."""
        self._tell(facts, *tensors)
        try:
            yield
        except Exception as error:
            self.lost = self.lost or f"{type(error).__name__} in what the processes of the model compute together"
            raise

    def _tell(self, facts: Mapping[str, Any], *tensors: Tensor) -> None:
        self.require_all()
        try:
            # Facts first, then tensors: a process reads the line that tells it how many elements of which dtype to
            # receive.
            for process in self._processes:
                self._write(process, facts)
            for tensor in tensors:
                self.group.broadcast(tensor.contiguous())
        except (OSError, RuntimeError) as error:
            self.lost = self.lost or f"the processes of the model cannot be reached: {error}"
            raise RankLost(self.lost) from error

    def require_all(self) -> None:
        """Raise RankLost if one of the others is gone or out of step."""
        if self.lost is not None:
            raise RankLost(self.lost)

    def close(self) -> None:
        """End the others. From any thread, as often as one likes."""
        self._closing = True
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()  # at the end of their input they end
        for process in self._processes:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._folder.cleanup()

    @staticmethod
    def _write(process: subprocess.Popen[bytes], facts: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(facts).encode() + b"\n")
        process.stdin.flush()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        # A thread per process sees its end at once, however long an exchange would have waited for it.
        code = process.wait()
        if self._closing:
            return
        self.lost = f"process {rank} of the model ended with exit status {code}"
        logger.critical("%s", self.lost)
        group = getattr(self, "group", None)
        if group is not None:
            group.leave()  # an exchange would wait for what never comes
        self._on_lost()


def _said(key: WeightsKey) -> dict[str, Any]:
    return {"base_revision": key.base_revision, "terms": key.terms}


def _require(config: EngineConfig, device: torch.device) -> None:
    size = config.tensor_parallel
    if device.type == "cuda":
        devices = torch.cuda.device_count()
        if device.index:
            reason = "the processes of tensor_parallel take cuda:0, cuda:1 and so on"
            raise InputError("device", config.device, "cuda", reason)
        if size > devices:
            raise InputError("tensor_parallel", size, f"at most {devices}, the CUDA devices that are visible")
