"""A model without weights: built once, and from then on a model of any weights is a copy that they are put into."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, read_json
from ladle.merging.checkpoints.conversion import Conversion
from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.checkpoints.quantised_reader import Quantization
from ladle.merging.exceptions import FamilyError

_RECOMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(bias|masked_bias)|position_ids)$"
)
_META = torch.device("meta")
_LONGEST_REASON = 300  # characters
# transformers lists every architecture that it knows.
_ALL_OF_THEM = re.compile(r"[.,;]? (should|must) (contain|be) one of .{200,}", re.IGNORECASE)


@dataclass(frozen=True)
class LoadingReport:
    """What transformers itself says of a checkpoint, after its conversions and under the model's names.

    Attributes:
        missing: weights that the checkpoint lacks and transformers would draw at random.
        unexpected: tensors that belong to no weight, without those that transformers leaves out on purpose.
        mismatched: weight -> (shape in the checkpoint, shape in the model).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


class Blueprint:
    """The causal language model of a config, without weights.

    Attributes:
        folder: where the config lies.
        config: as transformers reads it.
        conversion: how the tensors of a checkpoint become its weights.
        quantization: how its weights are quantised; None for plain ones. The model itself is plain.
    """

    def __init__(self, folder: str | Path) -> None:
        """Build it on the meta device, which takes no memory.

        Raises:
            FamilyError: the config means weights in a form that is not read, transformers has no causal language model
                for it, or cannot build it.
        """
        self.folder = Path(folder)
        self.config = load_config(folder)
        self.quantization = _quantization(self.config, self.folder / "config.json")
        self._skeletons: dict[tuple[torch.dtype, str], Any] = {}
        self._lock = threading.Lock()
        model, _ = self._on_meta({}, torch.float32, "eager")
        self.conversion = Conversion(model)
        # Buffers that are in no state dict, such as rotary frequencies, the model computes for itself.
        stored = model.state_dict().keys()
        self._buffers = frozenset(name for name, _ in model.named_buffers() if name not in stored)

    @property
    def model(self) -> Any:
        """On the meta device, to be looked at."""
        return self.conversion.model

    def report(self, reader: CheckpointReader) -> LoadingReport:
        """transformers' own loading report of a checkpoint, from shapes and dtypes alone.

        Raises:
            FamilyError: the conversion of its tensors fails.
        """
        # A state dict without memory: transformers runs its real loading, conversions and all, and reports what it
        # would do.
        state = {name: torch.empty(reader.shape(name), dtype=reader.dtype(name), device=_META) for name in reader.names}
        _, info = self._on_meta(state, torch.float32, "eager")
        if info["error_msgs"]:
            raise FamilyError(reader.folder, f"transformers cannot load this checkpoint: {info['error_msgs'][0]}")
        mismatched = {name: (tuple(shape), tuple(wanted)) for name, shape, wanted in info["mismatched_keys"]}
        return LoadingReport(tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"])), mismatched)

    def recomputes(self, name: str) -> bool:
        """Whether the tensor ``name`` of a checkpoint is a buffer that the model computes for itself: one of today's,
        or one that models of earlier versions of transformers saved (rotary frequencies, causal masks, positions)."""
        return name in self._buffers or _RECOMPUTED.search(name) is not None

    def look(self, attention: str) -> Any:
        """A model on the meta device in eval mode, for forwards that only show what is called. ``attention``: the
        implementation, by transformers' name for it."""
        # Experts in a form that the meta device can follow; what attends does not depend on it.
        model, _ = self._on_meta({}, torch.float32, attention, experts_implementation="batched_mm")
        return model.eval()

    def build(
        self,
        tensor: Callable[[str], Tensor],
        names: Mapping[str, str] | None,
        dtype: torch.dtype,
        attention: str,
    ) -> Any:
        """A model of these weights on the CPU, in eval mode, whose parameters need no gradient.

        Args:
            tensor: gives the weight of a name; weights are taken as they are where the dtype is the wanted one.
            names: tied weight -> the weight whose memory it shares.
            dtype: of floating weights, but for those that transformers keeps in float32.
            attention: the implementation, by transformers' name for it.
        """
        skeleton = self._skeleton(dtype, attention)
        # Copied without the lock of loads: nothing of a library's runs here.
        model = copy.deepcopy(skeleton)
        kept = _kept_in_float32(model, dtype)
        tied = dict(names or {})
        for name, expected in self._dtypes_of(skeleton).items():
            if name in tied:
                continue
            value = tensor(name)
            wanted = torch.float32 if kept(name) else expected
            _put(model, name, value.to(wanted) if value.is_floating_point() else value)
        for name, source in tied.items():
            parent, attribute = _owner(model, name)
            setattr(parent, attribute, _get(model, source))
        left = [name for name, weight in (*model.named_parameters(), *model.named_buffers()) if weight.is_meta]
        assert not left, f"nothing was put into {left[0]}"
        return model.eval().requires_grad_(False)

    def _dtypes_of(self, skeleton: Any) -> dict[str, torch.dtype]:
        return {name: tensor.dtype for name, tensor in skeleton.state_dict().items()}

    def _skeleton(self, dtype: torch.dtype, attention: str) -> Any:
        """The model with its weights on the meta device and what it computes for itself (rotary frequencies and the
        like) in memory."""
        with self._lock:
            # Built once for each dtype and form of attention: a copy is much quicker than a build.
            if (dtype, attention) not in self._skeletons:
                with loading(f"building the model of {self.folder}"), _floats_as(dtype):
                    model, _ = self._on_meta({}, dtype, attention)
                    _compute_buffers(model)
                    for config in (model.config, *_parts(model.config)):
                        config.dtype = dtype
                file = self.folder / "generation_config.json"
                if file.is_file():
                    model.generation_config = _generation_config(file)
                self._skeletons[dtype, attention] = model
            return self._skeletons[dtype, attention]

    def _on_meta(
        self, state: Mapping[str, Tensor], dtype: torch.dtype, attention: str, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """transformers' model of these tensors on the meta device, and its report."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        file = self.folder / "config.json"
        with loading(f"looking at {self.folder}"), _quiet(), _floats_as(dtype):
            try:
                architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]
            except KeyError:
                reason = f"no causal language model: transformers has none for model_type {self.config.model_type!r}"
                raise FamilyError(file, reason) from None
            config = self.config
            if architecture.config_class is config.sub_configs.get("text_config"):
                config = config.get_text_config()  # the model of one part of what the checkpoint holds
            try:
                # The dtype of the whole process stays what it is: other threads compute meanwhile.
                model, info = architecture.from_pretrained(
                    None,
                    config=copy.deepcopy(config),
                    state_dict=dict(state),
                    device_map={"": _META},
                    dtype=torch.float32,
                    attn_implementation=attention,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    trust_remote_code=False,
                    **options,
                )
            except Exception as error:  # models refuse configs in their own ways
                # With its own attention it could be built: this is what else was asked for.
                reason = "this architecture cannot be served: its attention cannot be replaced"
                reason = reason if hasattr(self, "conversion") else f"no causal language model: {_reason(error)}"
                raise FamilyError(file, reason) from error
        return model, info


def _quantization(config: Any, file: Path) -> Quantization | None:
    """What a config says of quantised weights, and from then on no longer says. Raises FamilyError."""
    document = getattr(config, "quantization_config", None)
    if not document:
        return None
    quantization = Quantization(document if isinstance(document, dict) else document.to_dict(), file)
    del config.quantization_config
    return quantization


def _parts(config: Any) -> Iterator[Any]:
    return (part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)


def load_config(folder: str | Path) -> Any:
    """The transformers config of ``folder``. Raises FamilyError naming config.json."""
    from transformers import AutoConfig

    file = Path(folder) / "config.json"
    document = read_json(file)  # a clear message for a missing or malformed file
    with loading(f"reading {file}"):
        try:
            return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # config classes validate in their own ways
            reason = f"transformers does not accept it: {_reason(error)}"
            if "model_type" not in document:
                reason = "model_type: missing; without it transformers does not know which architecture this is"
            raise FamilyError(file, reason) from error


def _generation_config(file: Path) -> Any:
    from transformers import GenerationConfig

    read_json(file)
    with loading(f"reading {file}"):
        try:
            return GenerationConfig.from_pretrained(file.parent, local_files_only=True)
        except Exception as error:  # it validates in its own ways
            raise FamilyError(file, f"transformers does not accept it: {_reason(error)}") from error


@torch.no_grad()
def _compute_buffers(model: Any) -> None:
    """Have ``model`` compute the buffers that no checkpoint holds, on the CPU, as it does at the end of a load."""
    # Initialisation draws random numbers for parameters, which are replaced anyway: marked as initialised they are
    # passed over, and only buffers are computed.
    stored = set(model.state_dict())
    for name, buffer in list(model.named_buffers()):
        if name not in stored:
            _put(model, name, torch.empty_like(buffer, device="cpu"))
        else:
            buffer._is_hf_initialized = True
    # Nothing is drawn for what has this mark.
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()


def _kept_in_float32(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps a weight in float32 in a model of ``dtype``."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda name: False
    pattern = build_glob_alternation(list(plan))[0]
    return lambda name: pattern.search(name) is not None


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _get(model: nn.Module, name: str) -> Any:
    parent, attribute = _owner(model, name)
    return getattr(parent, attribute)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    parent, attribute = _owner(model, name)
    if attribute in parent._parameters:
        parent._parameters[attribute] = nn.Parameter(value, requires_grad=False)
    else:
        parent._buffers[attribute] = value


class _FloatsAs(TorchFunctionMode):
    """New floating tensors of no given dtype get ``dtype``, on this thread alone; torch's default is everybody's."""

    _MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.tensor,
                         torch.linspace, torch.arange, torch.eye})  # fmt: skip

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = function(*args, **options)
        if function in self._MAKERS and options.get("dtype") is None and result.dtype == torch.get_default_dtype():
            return result.to(self._dtype)
        return result


@contextmanager
def _floats_as(dtype: torch.dtype) -> Iterator[None]:
    if dtype == torch.get_default_dtype():
        yield
    else:
        with _FloatsAs(dtype):
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its report of what is missing, which the caller reads itself. Under the lock."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    """An error of transformers as one line that is a sentence."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    # A heading says nothing without what stands under it.
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
    text = _ALL_OF_THEM.sub("", text)
    text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}".strip()
