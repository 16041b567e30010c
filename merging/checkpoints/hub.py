"""Repositories of the hub: what is served of one, and nothing twice."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ladle.merging.exceptions import FamilyError

# Weights come as safetensors only; "*.json" brings config, tokenizer, generation config and the shard index.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
# The same weights once more, as their trainer had them, and on the way to them.
_TWICE = ["consolidated*", "original/*", "onnx/*", "*/consolidated*", "checkpoint-*/*"]
_FAMILY = ["*.toml"]
_GGUF = ".gguf"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._/-]*)?")

Progress = Callable[[str], None]


def is_hub_id(spec: str) -> bool:
    """Whether ``spec`` could be ``ORG/NAME`` or ``ORG/NAME@REVISION``."""
    return _ID.fullmatch(spec) is not None


def from_hub(spec: str, progress: Progress | None) -> Path:
    """The folder of the repository ``ORG/NAME[@REVISION]``, or the one GGUF that it has instead of safetensors, or the
    file that ``ORG/NAME[@REVISION]/FILE.gguf`` names. What was downloaded before is not asked for again.

    Raises:
        FamilyError: the hub does not give it, or it has several GGUFs and ``spec`` names none.
    """
    if spec.endswith(_GGUF):
        repository, _, file = spec.rpartition("/")
        return _one_file(spec, repository, file, progress)
    folder = _snapshot(spec, progress, _FILES)
    if any(folder.glob("*.safetensors")) or not (files := _ggufs(spec, folder)):
        return folder
    if len(files) > 1:
        reason = f"the repository has several GGUFs: {', '.join(files)}; name one as {spec}/FILE.gguf"
        raise FamilyError(spec, reason)
    return _one_file(spec, spec, files[0], progress)


def member_from_hub(spec: str, progress: Progress | None) -> Path:
    """The folder of a member's repository ``ORG/NAME[@REVISION]``. Raises FamilyError: the hub does not give it."""
    return _snapshot(spec, progress, _FILES)


def family_from_hub(spec: str, progress: Progress | None) -> Path:
    """The folder of a family's repository ``ORG/NAME[@REVISION]``, with the members in it. Raises FamilyError: the hub
    does not give it."""
    return _snapshot(spec, progress, [*_FAMILY, *_FILES])


def _parts(spec: str) -> tuple[str, str | None]:
    """Repository and revision."""
    repository, _, revision = spec.partition("@")
    return repository, revision or None


def _snapshot(spec: str, progress: Progress | None, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = _parts(spec)
    options: dict[str, Any] = {"allow_patterns": list(files), "ignore_patterns": _TWICE, "revision": revision}
    try:
        return Path(snapshot_download(repository, local_files_only=True, **options))
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass  # not there yet (or no valid id, which the next call explains)
    if progress:
        progress(f"downloading {spec} from the hub")
    try:
        return Path(snapshot_download(repository, **options))
    except Exception as error:  # the hub client raises anything from HTTP errors to validation errors
        raise _refused(spec, error) from error


def _ggufs(spec: str, folder: Path) -> list[str]:
    from huggingface_hub import HfApi

    repository, revision = _parts(spec)
    try:
        at = {} if revision is None else {"revision": revision}
        return sorted(name for name in HfApi().list_repo_files(repository, **at) if name.endswith(_GGUF))
    except Exception:  # not reachable: what was downloaded before
        return sorted(path.name for path in folder.glob(f"*{_GGUF}"))


def _one_file(spec: str, repository: str, file: str, progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download

    repository, revision = _parts(repository)
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True, revision=revision))
    except Exception:  # not there yet, or the next call explains
        pass
    if progress:
        progress(f"downloading {file} of {repository} from the hub")
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        raise _refused(spec, error) from error


def _refused(spec: str, error: Exception) -> FamilyError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FamilyError(spec, f"neither a folder nor a repository that the hub gives us ({first_line})")
