"""A checkpoint whose weights are quantised, read as the plain weights that they stand for.

A weight takes the memory of its dtype from then on, or a byte a number with ``--quantize int8``: products with packed
numbers need kernels of their own, which are for GPUs as a rule. What is here needs no package beside torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladle.merging.checkpoints import packed_weights as layouts
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, require_finite
from ladle.merging.checkpoints.packed_weights import FourBits, Packed
from ladle.merging.exceptions import FamilyError

CURE = "give the plain checkpoint, or one quantised as fp8, compressed-tensors, gptq, awq or bitsandbytes"
_LEFT_OUT = re.compile(
    r"\.((in|out)put_scale|[kvq]_scale|kv_scale|activation_scale|input_(zero_point|g_idx|global_scale)|weight_format)$"
)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class Quantization:
    """``quantization_config`` of a checkpoint.

    Attributes:
        method: its ``quant_method``.
        name: in words, for reports.

    Raises:
        FamilyError: naming config.json: a method or a layout that is not read.
    """

    def __init__(self, document: Mapping[str, Any], file: Path) -> None:
        self._document = document
        self._file = file
        # Some writers of bitsandbytes leave the method out and say only in how many bits to load.
        self.method = str(document.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in document else None))
        readers = {"gptq": self._gptq, "awq": self._awq, "compressed-tensors": self._compressed,
                   "fp8": self._fp8, "fbgemm_fp8": self._fp8, "bitsandbytes": self._bitsandbytes}  # fmt: skip
        if self.method not in readers:
            raise self._refusal("quant_method", self.method, f"this form is not read; {CURE}")
        self._find = readers[self.method]
        try:
            self._check()
        except (TypeError, ValueError, AttributeError) as error:
            raise self._refusal("quant_method", self.method, f"malformed: {error}") from error
        bits = document.get("bits") or (4 if document.get("load_in_4bit") else None)
        self.name = f"{self.method}, {bits} bits" if bits else self.method

    def packed(self, reader: CheckpointReader) -> dict[str, Packed]:
        """The quantised weights of ``reader`` by name. Raises FamilyError naming file and tensor for one that lacks a
        part."""
        try:
            return self._find(reader)
        except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            raise FamilyError(self._file, f"quantization_config does not fit the checkpoint: {error}") from error

    def left_out(self, name: str) -> bool:
        """Whether a tensor says nothing of weights: scales of activations and of caches."""
        return _LEFT_OUT.search(name) is not None

    def _check(self) -> None:
        get = self._document.get
        if self.method == "gptq" and get("bits") not in (2, 4, 8):
            raise self._refusal("bits", get("bits"), f"2, 4 and 8 are read; {CURE}")
        if self.method == "awq" and (get("bits", 4) != 4 or str(get("version", "gemm")).lower() != "gemm"):
            raise self._refusal("version", f"{get('version')} of {get('bits')} bits", f"gemm of 4 bits is read; {CURE}")
        if self.method == "compressed-tensors":
            for key in ("transform_config", "sparsity_config"):
                inner = get(key) or {}
                if inner and (inner.get("config_groups") or inner.get("format") not in (None, "dense")):
                    raise self._refusal(key, str(inner.get("format") or "rotations"), f"this is not read; {CURE}")

    def _refusal(self, key: str, value: Any, reason: str) -> FamilyError:
        return FamilyError(self._file, f"quantization_config.{key}: {value!r}: {reason}")

    def _gptq(self, reader: CheckpointReader) -> dict[str, Packed]:
        bits = int(self._document["bits"])
        decode = layouts.gptq(bits, str(self._document.get("checkpoint_format")) == "gptq_v2")
        weights = {}
        for path, parts in _modules(reader, "qweight", ("qzeros", "scales")):
            parts |= _optional(reader, path, {"g_idx": "g_idx"})
            # Packed along the inputs: 32 / bits of them in a word. The weight gets the dtype of its scales.
            rows, outputs = reader.shape(parts["qweight"])
            dtype = reader.dtype(parts["scales"])
            weights[f"{path}.weight"] = Packed(parts, (outputs, rows * 32 // bits), decode, dtype)
        return weights

    def _awq(self, reader: CheckpointReader) -> dict[str, Packed]:
        weights = {}
        for path, parts in _modules(reader, "qweight", ("qzeros", "scales")):
            shape = (reader.shape(parts["scales"])[1], reader.shape(parts["qweight"])[0])
            weights[f"{path}.weight"] = Packed(parts, shape, layouts.awq, reader.dtype(parts["scales"]))
        return weights

    def _compressed(self, reader: CheckpointReader) -> dict[str, Packed]:
        weights = {}
        for path, parts in _modules(reader, "weight_packed", ("weight_scale", "weight_shape")):
            named = {"packed": parts["weight_packed"], "scale": parts["weight_scale"], "shape": parts["weight_shape"]}
            if reader.dtype(named["packed"]) != torch.int32:
                reason = f"{reader.dtype(named['packed'])} of four-bit floats is not read; {CURE}"
                raise FamilyError(reader.file_of(named["packed"]), reason, named["packed"])
            named |= _optional(reader, path, {"zero": "weight_zero_point", "g_idx": "weight_g_idx"})
            outputs, inputs = (int(size) for size in reader.tensor(named["shape"]))
            words = reader.shape(named["packed"])[1]
            # The configuration may have several groups, of which the number of bits would have to be found; the words
            # of a row say it, too.
            bits = next((bits for bits in (2, 4, 8) if -(-inputs * bits // 32) == words), None)
            if bits is None:
                reason = f"{words} words per row for {inputs} inputs; rows of 2, 4 or 8 bits are read; {CURE}"
                raise FamilyError(reader.file_of(named["packed"]), reason, named["packed"])
            decode = layouts.packed_ints(bits, self._block(path))
            weights[f"{path}.weight"] = Packed(named, (outputs, inputs), decode, _float(reader, named["scale"]))
        return weights | self._scaled(reader, ("_scale",), "_zero_point")

    def _fp8(self, reader: CheckpointReader) -> dict[str, Packed]:
        return self._scaled(reader, ("_scale_inv", "_scale"), "")

    def _scaled(self, reader: CheckpointReader, suffixes: tuple[str, ...], zero: str) -> dict[str, Packed]:
        """Weights of a byte a number with a scale beside them, of a module or of all experts of a layer."""
        weights = {}
        for name in reader.names:
            if reader.dtype(name) not in (*_FLOAT8, torch.int8) or name.endswith(("_zero_point", *suffixes)):
                continue
            # A byte a number says nothing by itself: without a scale it may be anything, and is refused.
            scale = next((name + suffix for suffix in suffixes if name + suffix in reader), None)
            if scale is None:
                reason = f"{reader.dtype(name)} without a scale beside it ({name}{suffixes[0]}); {CURE}"
                raise FamilyError(reader.file_of(name), reason, name)
            parts = {"weight": name, "scale": scale}
            parts |= {"zero": name + zero} if zero and name + zero in reader else {}
            decode = layouts.scaled(self._block(name.removesuffix(".weight")))
            weights[name] = Packed(parts, reader.shape(name), decode, _float(reader, scale))
        return weights

    def _bitsandbytes(self, reader: CheckpointReader) -> dict[str, Packed]:
        weights = {}
        for name in reader.names:
            # Eight bits have a scale per output under this name; four bits have their facts in a tensor of bytes, and
            # up to four more tensors.
            if name.endswith(".SCB"):
                weight = name.removesuffix("SCB") + "weight"
                parts = {"weight": weight, "scale": name}
                weights[weight] = Packed(parts, reader.shape(weight), layouts.eight_bits)
            if ".quant_state.bitsandbytes__" not in name:
                continue
            weight = name.partition(".quant_state.")[0]
            try:
                state = FourBits.read(reader.tensor(name))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FamilyError(reader.file_of(name), f"is no state of bitsandbytes: {error}", name) from None
            wanted = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if state.nested else [])]
            parts = {"weight": weight} | {part: f"{weight}.{part}" for part in wanted}
            _require(reader, parts)
            weights[weight] = Packed({**parts, "state": name}, state.shape, state.decode, state.dtype)
        return weights

    def _block(self, path: str) -> tuple[int, int] | None:
        """Size of the blocks that have one scale, as the config says it of a module; None where it does not."""
        sizes = self._document.get("weight_block_size")
        if sizes:
            return int(sizes[0]), int(sizes[1])
        groups = self._document.get("config_groups") or {}
        groups_of_path = [group for group in groups.values() if _meant(group.get("targets") or [], path)]
        weights = (groups_of_path[0] if groups_of_path else next(iter(groups.values()), {})).get("weights") or {}
        if weights.get("block_structure"):
            first, second = weights["block_structure"]
            return int(first), int(second)
        size = weights.get("group_size")
        return (1, int(size)) if isinstance(size, int) and size > 0 else None


class QuantisedReader(CheckpointReader):
    """The plain weights of a quantised checkpoint; each is made whenever it is asked for.

    Raises:
        FamilyError: as ``CheckpointReader``, and for a weight that lacks one of its tensors.
    """

    def __init__(self, folder: str | Path, quantization: Quantization, dtype: torch.dtype) -> None:
        """``dtype``: of weights whose layout says none."""
        super().__init__(folder)
        # Two views of one folder: the tensors as they lie there, and the weights that they make.
        self.as_stored = CheckpointReader(folder)
        self._packed = quantization.packed(self.as_stored)
        self._own = dtype
        # The parts of quantised weights, and scales that concern activations, disappear; in their place stand the plain
        # weights, with the shapes and dtypes that they will have.
        used = {part for packed in self._packed.values() for part in packed.parts.values()}
        for name in [name for name in self._where if name in used or quantization.left_out(name)]:
            del self._where[name], self._shapes[name], self._dtypes[name]
        for name, packed in self._packed.items():
            self._where[name] = self.as_stored.file_of(next(iter(packed.parts.values())))
            self._shapes[name] = packed.shape
            self._dtypes[name] = packed.dtype or dtype

    def tensor(self, name: str) -> Tensor:
        """A view of the memory map, or a quantised weight made plain. Raises FamilyError where its tensors do not fit
        each other."""
        packed = self._packed.get(name)
        if packed is None:
            return super().tensor(name)
        try:
            plain = packed.decode({part: self.as_stored.tensor(own) for part, own in packed.parts.items()})
        except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError) as error:
            reason = f"its tensors do not fit each other: {(str(error).splitlines() or ['?'])[0]}"
            raise FamilyError(self._where[name], reason, name) from error
        # The shape was promised from headers alone, before anything was decoded.
        if tuple(plain.shape) != packed.shape:
            reason = f"its tensors give shape {list(plain.shape)}, not {list(packed.shape)}"
            raise FamilyError(self._where[name], reason, name)
        return plain.to(packed.dtype or self._own).contiguous()

    def check_finite(self) -> None:
        """Make everything once. Raises FamilyError at the first NaN or infinity."""
        for name in self.names:
            require_finite(self.tensor(name), self._where[name], name)


def _modules(reader: CheckpointReader, main: str, others: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """(module path, its tensors by their last names) of every module with a tensor ``main``."""
    modules = []
    for name in reader.names:
        if name.endswith(f".{main}"):
            path = name.removesuffix(f".{main}")
            parts = {part: f"{path}.{part}" for part in (main, *others)}
            _require(reader, parts)
            modules.append((path, parts))
    return modules


def _require(reader: CheckpointReader, parts: Mapping[str, str]) -> None:
    first = next(iter(parts.values()))
    for name in parts.values():
        if name not in reader:
            file = reader.file_of(first) if first in reader else reader.folder
            raise FamilyError(file, "missing, though other tensors of this weight are there", name)


def _optional(reader: CheckpointReader, path: str, names: Mapping[str, str]) -> dict[str, str]:
    return {part: f"{path}.{name}" for part, name in names.items() if f"{path}.{name}" in reader}


def _float(reader: CheckpointReader, scale: str) -> torch.dtype | None:
    """The dtype of a scale, if weights can have it too: float32 scales of a model in 16 bits say nothing."""
    # Scales in 16 bits have the model's own dtype.
    dtype = reader.dtype(scale)
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _meant(targets: list[str], path: str) -> bool:
    """Whether a group of compressed-tensors' config names a module; one of a class (``Linear``) means any."""
    return any(
        re.match(target.removeprefix("re:"), path) is not None
        if target.startswith("re:")
        else target in (path, "Linear")
        for target in targets
    )
