"""Finding the base model: a folder, the hub, or the GGUF inside an installed wheel (converted once)."""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

from filelock import FileLock

from ladle.merging.checkpoints.new_folder import forget_unfinished, new_folder, require_space
from ladle.merging.checkpoints.reader import INDEX, SINGLE, CheckpointReader, read_json
from ladle.merging.errors import FamilyError

Progress = Callable[[str], None]

_PYPI = "pypi:"
_SAMPLE = 1 << 20  # bytes; the head of a GGUF holds all its metadata
# Weights come as safetensors only; "*.json" brings config, tokenizer, generation config and the shard index.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


def default_cache_dir() -> Path:
    """``$LADLE_CACHE``, else ``$XDG_CACHE_HOME/ladle``, else ``~/.cache/ladle``."""
    if explicit := os.environ.get("LADLE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ladle"


def resolve_base(
    spec: str,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    root: str | Path | None = None,
) -> Path:
    """The folder of safetensors, config and tokenizer that ``spec`` means.

    Args:
        spec: a folder; ``pypi:DISTRIBUTION`` (or ``pypi:DISTRIBUTION/FILE.gguf`` where it holds several): the GGUF
            inside an installed distribution; or the id of a repository on the hub.
        cache_dir: where conversions are kept; ``default_cache_dir()`` if None.
        progress: called with one line before anything that takes long.
        root: what a relative folder is relative to, tried before the working directory.

    Raises:
        FamilyError: nothing of the kind is there, or it is no usable checkpoint.
    """
    if spec.startswith(_PYPI):
        folder = _from_distribution(spec, Path(cache_dir) if cache_dir else default_cache_dir(), progress)
    elif (found := _folder(spec, Path(root) if root else None)) is not None:
        folder = found
    elif spec.startswith(("/", "./", "../", "~")) or spec.count("/") > 1:
        raise FamilyError(spec, "model: no such folder")
    else:
        folder = _from_hub(spec, progress)
    if not (folder / "config.json").is_file():
        raise FamilyError(folder / "config.json", "no such file; the base needs config.json beside its safetensors")
    return folder


def _folder(spec: str, root: Path | None) -> Path | None:
    path = Path(spec).expanduser()
    candidates = [path] if path.is_absolute() or root is None else [root / path, path]
    return next((candidate.resolve() for candidate in candidates if candidate.is_dir()), None)


def _from_hub(spec: str, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec, allow_patterns=_HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass  # not there yet (or no valid id, which the next call explains)
    if progress:
        progress(f"downloading {spec} from the hub")
    try:
        return Path(snapshot_download(spec, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises anything from HTTP errors to validation errors
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = f"model: neither a folder nor a repository that the hub gives us ({first_line})"
        raise FamilyError(spec, reason) from error


def _from_distribution(spec: str, cache_dir: Path, progress: Progress | None) -> Path:
    gguf = _find_gguf(spec)
    target = cache_dir / "bases" / f"{gguf.stem}-{_fingerprint(gguf)}"
    if _complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _complete(target):  # else another process converted it while we waited
            if progress:
                progress(f"converting {gguf.name} to safetensors, once (into {target})")
            shutil.rmtree(target, ignore_errors=True)  # parts of it, if anything
            forget_unfinished(target)
            with new_folder(target) as temporary:
                convert_gguf(gguf, temporary)
    return target


def _complete(folder: Path) -> bool:
    # The folder appears by one rename, so it is complete when it exists; users may still delete parts of it.
    weights = (folder / SINGLE).is_file() or (folder / INDEX).is_file()
    return weights and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def _fingerprint(file: Path) -> str:
    """12 hex digits over size, head, middle and tail: one build of a wheel told from the next, without reading it all.

    Not over the time of change, which moves when the same wheel is installed again.
    """
    size = file.stat().st_size
    hasher = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for start in (0, size // 2, max(0, size - _SAMPLE)):
            stream.seek(start)
            hasher.update(stream.read(_SAMPLE))
    return hasher.hexdigest()[:12]


def _find_gguf(spec: str) -> Path:
    name, _, wanted = spec[len(_PYPI) :].partition("/")
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        reason = f"model: the distribution {name!r} is not installed; pip install --no-deps {name}"
        raise FamilyError(spec, reason) from None
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or [] if file.suffix == ".gguf"]
    found = [path for path in paths if path.is_file() and wanted in ("", path.name)]
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in paths)) or "none"
        reason = f"model: needs exactly one GGUF, and {name} holds: {names}; name one as pypi:{name}/FILE.gguf"
        raise FamilyError(spec, reason)
    return found[0]


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF's metadata once instead of three times, and build its name map once instead of
    once a module: both are pure functions of their arguments, and this halves the time of a conversion."""
    import gguf

    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(patch.object(gguf, name, functools.cache(getattr(gguf, name))))
        yield


def _name_ends(tokenizer: Any, file: Path) -> None:
    """Take the tokens that begin, end and pad texts from the metadata of ``file``: transformers 5.17 takes those of
    the architecture for them, and no text would end where it should."""
    import gguf

    fields = gguf.GGUFReader(str(file)).fields
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))


def convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise ``gguf`` into ``out`` as float32 safetensors with config, generation config and tokenizer.

    float32, because the values of 4-bit blocks (scale times integer plus minimum) do not fit bfloat16's 8 bits.

    Raises:
        FamilyError: transformers cannot read the file, the disk has no room, or a tensor holds NaN or infinity.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with _parsed_once():
            loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
            tokenizer: Any = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
            _name_ends(tokenizer, gguf)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise FamilyError(gguf, f"transformers cannot read this GGUF: {error}") from error
    require_space(out, sum(weight.nbytes for weight in loaded.parameters()))
    config = loaded.config
    # save_pretrained refuses a model that calls itself quantised, and a loader would believe it: so the values go
    # into a fresh model of the same shape.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    with torch.device("meta"):  # no memory and no random numbers for values that are replaced at once
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    end = tokenizer.eos_token_id
    if end is not None:
        config.eos_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    reader = CheckpointReader(out)
    try:
        reader.check_finite()
    except FamilyError as error:
        raise FamilyError(gguf, error.reason, error.tensor) from None
    if not read_json(out / "config.json").get("vocab_size"):
        raise FamilyError(gguf, "the converted config has no vocab_size")
