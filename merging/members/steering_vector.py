"""Steering vectors: a direction per layer that is added to the hidden states, scaled by a request's coefficient."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ladle.merging.checkpoints.checkpoint_files import refuse_pointer
from ladle.merging.checkpoints.checkpoint_reader import require_finite
from ladle.merging.checkpoints.tensor_file import read_tensors
from ladle.merging.exceptions import FamilyError

VECTOR = "steering_vector.safetensors"
"""The file that is looked for where a folder is named."""
TENSOR = "vector"
_GGUF = ".gguf"
_CONTROL_VECTOR = "controlvector"
_DIRECTION = "direction."


@dataclass(frozen=True)
class SteeringVector:
    """What h_l + c V_l needs: V.

    Activation additions (arXiv 2308.10248) and representation engineering (arXiv 2310.01405) add to the hidden states
    after one layer or after several of them; a layer that takes no part has zeros here.

    Attributes:
        name: its name in the family.
        path: the file.
        directions: ``[layers, hidden]`` float32; row l is added to the hidden states after decoder layer l, of which
            the first is 0, so that the last row is added in front of the final norm.
        saved: bytes of its numbers as saved.
    """

    name: str
    path: Path
    directions: torch.Tensor
    saved: int

    def numel(self) -> int:
        """How many numbers it has."""
        return self.directions.numel()

    def nbytes(self) -> int:
        """Bytes as saved."""
        return self.saved


def vector_file(spec: str, root: Path) -> Path:
    """The file that ``path`` of an entry of ``[[vectors]]`` means: relative to ``root``, absolute or beginning with
    ``~``; of a folder the ``steering_vector.safetensors`` in it.

    Raises:
        FamilyError: there is no such file.
    """
    try:
        path = root / Path(spec).expanduser()
    except RuntimeError:  # ~name of nobody
        path = root / spec
    file = path / VECTOR if path.is_dir() else path
    if not file.is_file():
        raise FamilyError(file, "no such file; a steering vector is a .safetensors or .gguf file")
    return file


def load_vector(file: Path, name: str, layers: int, hidden: int) -> SteeringVector:
    """Read a steering vector: the only tensor of a safetensors file, ``[layers, hidden]`` of any float dtype, or a
    control vector in GGUF as llama.cpp has them.

    Args:
        layers: how many decoder layers the base has.
        hidden: width of its hidden states.

    Raises:
        FamilyError: naming file and tensor: no vector, another shape, a dtype that is not float, NaN or infinity.
    """
    # By suffix: llama.cpp's control vectors, or one tensor [layers, hidden] under any name.
    if file.suffix == _GGUF:
        directions, saved = _read_gguf(file, layers, hidden)
    elif file.suffix == ".safetensors":
        tensors = read_tensors(file)
        if len(tensors) != 1:
            reason = f"{len(tensors)} tensors; one alone is expected, [{layers}, {hidden}]"
            raise FamilyError(file, reason, ", ".join(sorted(tensors)[:5]) or None)
        ((key, tensor),) = tensors.items()
        if tuple(tensor.shape) != (layers, hidden) or not tensor.is_floating_point():
            needed = f"[{layers}, {hidden}] is needed: a row for each of the base's {layers} layers"
            raise FamilyError(file, f"{tensor.dtype} of shape {list(tensor.shape)}, but {needed}", key)
        directions, saved = _as_float32(tensor, file, key), tensor.nbytes
    else:
        raise FamilyError(
            file, f"{file.suffix or 'no suffix'!r} is no format of a steering vector: .safetensors, .gguf"
        )
    return SteeringVector(name, file, directions, saved)


def save_vector(file: Path, directions: torch.Tensor, facts: Mapping[str, str] | None = None) -> None:
    """Write ``directions`` [layers, hidden] as ``load_vector`` reads them, in their dtype. ``facts``: kept in the
    file's metadata."""
    save_file({TENSOR: directions.contiguous()}, file, metadata={"format": "pt", **(facts or {})})


def _as_float32(tensor: torch.Tensor, file: Path, name: str) -> torch.Tensor:
    require_finite(tensor, file, name)
    converted = tensor.float().clone()
    require_finite(converted, file, name)  # finite in float64 need not be finite in float32
    return converted


def _read_gguf(file: Path, layers: int, hidden: int) -> tuple[torch.Tensor, int]:
    """The directions of a control vector and their bytes.

    llama.cpp's layout: ``general.architecture`` is ``controlvector``, and the tensors ``direction.1``, ``direction.2``
    and so on, of ``hidden`` float numbers each, are what is added after the layer of that number, counted from 0. The
    layer 0 has none, and one whose direction is missing gets none.
    """
    import gguf

    refuse_pointer(file)
    try:
        reader = gguf.GGUFReader(str(file))
        field = reader.fields.get("general.architecture")
        kind = None if field is None else str(field.contents())
        tensors = {str(tensor.name): tensor for tensor in reader.tensors}
    except Exception as error:  # the library raises what its parsing happens to meet
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FamilyError(file, f"cannot be read as GGUF: {reason}") from None
    if kind != _CONTROL_VECTOR:
        raise FamilyError(file, f"general.architecture is {kind!r}, but a control vector says {_CONTROL_VECTOR!r}")
    if not tensors:
        raise FamilyError(file, "it has no direction")
    directions, saved = torch.zeros(layers, hidden), 0
    for name, tensor in tensors.items():
        number = name.removeprefix(_DIRECTION)
        if not name.startswith(_DIRECTION) or not number.isascii() or not number.isdigit():
            raise FamilyError(file, "only direction.1, direction.2 and so on are expected", name)
        layer = int(number)
        if not 1 <= layer < layers:
            raise FamilyError(file, f"the base has {layers} layers, so that 1 to {layers - 1} are possible", name)
        shape, dtype = [int(size) for size in tensor.shape], tensor.data.dtype.name
        if shape != [hidden] or tensor.tensor_type not in (
            gguf.GGMLQuantizationType.F32,
            gguf.GGMLQuantizationType.F16,
        ):
            raise FamilyError(
                file, f"{dtype} of shape {shape}; {hidden} numbers in float32 or float16 are needed", name
            )
        directions[layer] = _as_float32(torch.from_numpy(tensor.data.copy()), file, name)
        saved += int(tensor.n_bytes)
    return directions, saved
