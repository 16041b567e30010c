"""One load at a time, and the libraries as they were after it.

transformers changes what belongs to the whole process while it builds a model: it swaps ``PreTrainedModel.tie_weights``
and the functions of ``torch.nn.init``, and puts back what it found. Of two builds at once the second one finds what the
first one swapped in, and puts that back at its end, for good. So whatever calls ``from_pretrained`` or ``from_config``
does it inside ``loading``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

logger = logging.getLogger(__name__)

_LOCK = threading.RLock()
_VARIABLES = ("TOKENIZERS_", "HF_", "TRANSFORMERS_")
_ABSENT = object()


@dataclass(frozen=True)
class _Setting:
    """One thing that belongs to the whole process (or to this thread): what it is, and how it is put back."""

    value: Any
    put_back: Callable[[Any], None]


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Hold the one lock of this process under which libraries may build models, configs and tokenizers.

    At the end every setting that those libraries are known to change is compared with what it was at the beginning. One
    that differs is put back, and an error that names it and ``what`` is logged: from then on the process is sound, but
    a library did what it should not. A thread that holds the lock may enter again.
    """
    with _LOCK:
        before = _settings()
        try:
            yield
        finally:
            _put_back(before, what)


def _put_back(before: dict[str, _Setting], what: str) -> None:
    after = _settings()
    changed = [name for name in before if name in after and not _same(before[name].value, after[name].value)]
    for name in changed:
        before[name].put_back(before[name].value)
    if changed:
        logger.error("%s: the load left these changed, and they were put back: %s", what, ", ".join(sorted(changed)))


def _same(one: Any, other: Any) -> bool:
    return one is other or (not callable(one) and bool(one == other))


def _settings() -> dict[str, _Setting]:
    """Everything that is compared, by a name for the log."""
    from transformers import PreTrainedModel, modeling_utils
    from transformers import initialization as init

    # What transformers, torch's initialisation, gguf and the tokenizers are known to swap or to set while they load.
    settings = {
        "torch.get_default_dtype": _Setting(torch.get_default_dtype(), torch.set_default_dtype),
        "torch.get_default_device": _Setting(torch.get_default_device(), _set_device),
        "torch.is_grad_enabled": _Setting(torch.is_grad_enabled(), _set_grad),
        "torch.get_num_threads": _Setting(torch.get_num_threads(), torch.set_num_threads),
    }
    for name in ("linspace", "arange", "empty", "zeros", "ones", "full", "tensor"):
        settings[f"torch.{name}"] = _attribute(torch, name)
    for path in init.TORCH_MODULES_TO_PATCH:
        if (module := sys.modules.get(path)) is not None:
            for name in init.TORCH_INIT_FUNCTIONS:
                if hasattr(module, name):
                    settings[f"{path}.{name}"] = _attribute(module, name)
    for name in ("tie_weights", "init_weights", "initialize_weights", "_init_weights", "_initialize_weights"):
        settings[f"PreTrainedModel.{name}"] = _attribute(PreTrainedModel, name)
    for name in ("_is_quantized", "_is_ds_init_called"):
        settings[f"transformers.modeling_utils.{name}"] = _attribute(modeling_utils, name)
    gguf = sys.modules.get("gguf")
    for name in ("GGUFReader", "get_tensor_name_map") if gguf is not None else ():
        settings[f"gguf.{name}"] = _attribute(gguf, name)
    for name in {*os.environ, "TOKENIZERS_PARALLELISM"}:
        if name.startswith(_VARIABLES):
            settings[f"${name}"] = _Setting(os.environ.get(name), partial(_set_variable, name))
    return settings


def _attribute(owner: Any, name: str) -> _Setting:
    def put_back(value: Any) -> None:
        if value is not _ABSENT:
            setattr(owner, name, value)

    return _Setting(getattr(owner, name, _ABSENT), put_back)


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_grad(enabled: bool) -> None:
    torch.set_grad_enabled(enabled)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
