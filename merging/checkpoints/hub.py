"""Bases from the hub: what is served of a repository, and nothing twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladle.merging.errors import FamilyError

# Weights come as safetensors only; "*.json" brings config, tokenizer, generation config and the shard index.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
# The same weights once more, as their trainer had them.
_TWICE = ["consolidated*", "original/*", "onnx/*", "*/consolidated*"]
_GGUF = ".gguf"


def from_hub(spec: str, progress: Callable[[str], None] | None) -> Path:
    """The folder of the repository ``ORG/NAME``, or the one GGUF that it has instead of safetensors, or the file that
    ``ORG/NAME/FILE.gguf`` names. What was downloaded before is not asked for again.

    Raises:
        FamilyError: the hub does not give it, or it has several GGUFs and ``spec`` names none.
    """
    if spec.endswith(_GGUF):
        repository, _, file = spec.rpartition("/")
        return _one_file(spec, repository, file, progress)
    folder = _snapshot(spec, progress)
    if any(folder.glob("*.safetensors")) or not (files := _ggufs(spec, folder)):
        return folder
    if len(files) > 1:
        reason = f"model: the repository has several GGUFs: {', '.join(files)}; name one as {spec}/FILE.gguf"
        raise FamilyError(spec, reason)
    return _one_file(spec, spec, files[0], progress)


def _snapshot(spec: str, progress: Callable[[str], None] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options: dict[str, Any] = {"allow_patterns": _FILES, "ignore_patterns": _TWICE}
    try:
        return Path(snapshot_download(spec, local_files_only=True, **options))
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass  # not there yet (or no valid id, which the next call explains)
    if progress:
        progress(f"downloading {spec} from the hub")
    try:
        return Path(snapshot_download(spec, **options))
    except Exception as error:  # the hub client raises anything from HTTP errors to validation errors
        raise _refused(spec, error) from error


def _ggufs(spec: str, folder: Path) -> list[str]:
    from huggingface_hub import HfApi

    try:
        return sorted(name for name in HfApi().list_repo_files(spec) if name.endswith(_GGUF))
    except Exception:  # not reachable: what was downloaded before
        return sorted(path.name for path in folder.glob(f"*{_GGUF}"))


def _one_file(spec: str, repository: str, file: str, progress: Callable[[str], None] | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except Exception:  # not there yet, or the next call explains
        pass
    if progress:
        progress(f"downloading {file} of {repository} from the hub")
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:
        raise _refused(spec, error) from error


def _refused(spec: str, error: Exception) -> FamilyError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FamilyError(spec, f"model: neither a folder nor a repository that the hub gives us ({first_line})")
