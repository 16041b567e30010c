"""One of the processes beside the engine's (see ``ranks``): has a part of the model, and computes what it is told.

Started as ``python -m ladle.server.engine.rank_process``; reads lines of JSON and ends when there are no more.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ladle.merging.family.family import load_family
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.device import allocator
from ladle.server.engine.device.device import make_current
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward.attention import PagedContext
from ladle.server.engine.forward.loaded_model import LoadedModel
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.ranks.layout_wire import unpack
from ladle.server.engine.ranks.process_group import ProcessGroup
from ladle.server.engine.served_models import ServedModels


class RankProcess:
    """A part of every model of a family, and of their KV pools."""

    def __init__(self, asked: dict[str, Any]) -> None:
        """``asked``: as ``Ranks`` says it. Raises FamilyError, InputError."""
        rank = asked["rank"]
        self._device = torch.device(f"cuda:{rank}" if asked["device"] == "cuda" else "cpu")
        make_current(self._device)
        allocator.prepare()
        self._group = ProcessGroup(Path(asked["meeting"]), rank, asked["size"], self._device)
        family = load_family(asked["family"], asked["cache_dir"], left_out=asked["left_out"])
        # The same family, loaded with the same settings: ``facts`` are compared with the engine's before anything runs.
        self._models = ServedModels(family, EngineConfig(**asked["config"]), self._device, tuple, self._group)
        self._merged: dict[WeightsKey, Future[LoadedModel]] = {}
        self._builder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ladle-merge")
        longest = self._models.blocks * BLOCK_SIZE
        self._keys = torch.arange(longest, device=self._device)
        self.facts = self._models.facts()

    @torch.inference_mode()
    def do(self, said: dict[str, Any]) -> None:
        """What the engine's process does at the same time, with this process's part."""
        match said["do"]:
            case "merge":
                key = _key(said)
                self._merged[key] = self._builder.submit(self._models.build, key)
            case "drop":
                self._merged.pop(_key(said)).cancel()
            case "clear":
                self._models.caches[said["model"]].clear(said["blocks"])
            case "copy":
                source = self._receive(torch.int64, said["count"])
                self._models.caches[said["model"]].copy(source, self._receive(torch.int64, said["count"]))
            # A forward or its hidden states. Where each token is, is not sent: compiled layers are not divided.
            case what:
                layout = unpack(said["layout"], self._receive, self._keys)
                context = PagedContext(self._models.caches[said["model"]], layout.slot_mapping, layout.groups)
                model = self._model(_key(said))
                {"forward": model.forward, "hidden": model.hidden}[what](layout, context)

    def _model(self, key: WeightsKey) -> LoadedModel:
        """What the engine's process has already; here its merge may still be under way."""
        models = self._models.store.models
        return models[key] if key in models else self._merged[key].result()

    def _receive(self, dtype: torch.dtype, count: int) -> Tensor:
        return self._group.broadcast(torch.empty(count, dtype=dtype, device=self._device))


def _key(said: dict[str, Any]) -> WeightsKey:
    return WeightsKey(
        said["weights"]["base_revision"], tuple((name, value) for name, value in said["weights"]["terms"])
    )


def read(lines: IO[bytes], said: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Put every line of ``lines`` into ``said``; at their end this process ends, whatever it waits for."""
    for line in lines:
        said.put(json.loads(line))
    os._exit(0)


def main() -> None:
    # What libraries print is not for the engine, which reads two lines from here: that this process is there, and what
    # it has loaded.
    answer, sys.stdout = sys.stdout, sys.stderr
    logging.basicConfig(level=logging.WARNING)
    said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read, args=(sys.stdin.buffer, said), daemon=True).start()
    asked = said.get()
    print(json.dumps("here"), file=answer, flush=True)
    process = RankProcess(asked)
    print(json.dumps(process.facts), file=answer, flush=True)
    while True:
        process.do(said.get())


if __name__ == "__main__":
    try:
        main()
    except Exception:
        logging.getLogger(__name__).critical("a process of the model stops", exc_info=True)
        os._exit(1)  # threads of an exchange that still waits would keep it
